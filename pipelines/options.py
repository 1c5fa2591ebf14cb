"""The schema of a recipe as options of a command line: a dotted path for every field, with its help from the field's docstring."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from grun.config import Config, Recipe
from grun.reading import MalformedError, parse_yaml

__all__ = ["Option", "schema_options"]

_METAVARS = {str: "TEXT", Path: "FOLDER", bool: "BOOL", int: "INT", float: "NUMBER", tuple: "LIST"}


@dataclass(frozen=True)
class _Section:
    """A section of the recipe, or a union of sections told apart by `kind`."""

    path: str
    summary: str
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Variant:
    """A field as one kind of a union has it, or the field itself outside unions (kind "")."""

    kind: str
    annotation: Any
    summary: str
    default: Any

    @property
    def types(self) -> tuple[Any, ...]:
        return tuple(_plain_types(self.annotation))

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it is limited to, if it is."""
        return tuple(str(word) for kind in self.types if get_origin(kind) is Literal for word in get_args(kind))

    @property
    def note(self) -> str:
        """Choices and default, in brackets."""
        limits = f"one of {', '.join(self.choices)}; " if len(self.choices) > 1 else ""
        return f"[{limits}{'required' if self.default is PydanticUndefined else f'default: {_show(self.default)}'}]"


@dataclass(frozen=True)
class Option:
    """A leaf of the schema: all the fields at one dotted path."""

    section: _Section
    name: str
    variants: tuple[_Variant, ...]

    @property
    def path(self) -> str:
        """As it is typed, without the dashes."""
        return f"{self.section.path}.{self.name}".lstrip(".")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the union that have it."""
        return tuple(variant.kind for variant in self.variants)

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        if all(variant.choices for variant in self.variants):
            return "CHOICE"
        names = {_METAVARS.get(kind, "TEXT") for variant in self.variants for kind in variant.types if kind is not type(None)}
        return names.pop() if len(names) == 1 else "TEXT"

    @property
    def help(self) -> str:
        """Docstring, choices and default; one line for each group of kinds among which they are the same."""
        notes = {variant.note for variant in self.variants}
        shared = notes.pop() if len(notes) == 1 else ""
        kinds_of: dict[str, list[str]] = {}
        for variant in self.variants:
            kinds_of.setdefault(variant.summary if shared else f"{variant.summary} {variant.note}", []).append(variant.kind)
        is_common = len(kinds_of) == 1 and len(self.kinds) == max(1, len(self.section.kinds))
        lines = [line if is_common else f"kind {', '.join(kinds)}: {line}" for line, kinds in kinds_of.items()]
        return (" " if len(lines) == 1 else "\n").join([*lines, *filter(None, [shared])])

    def read(self, text: str) -> Any:
        """Turn what was typed into what a recipe file would hold; the schema validates it later."""
        types = {kind for variant in self.variants for kind in variant.types}
        if type(None) in types and text.strip().lower() in ("none", "null"):
            return None
        if types & {str, Path} or any(variant.choices for variant in self.variants):
            return text
        if tuple in types and not text.lstrip().startswith("["):
            text = f"[{text}]"
        try:
            return parse_yaml(text)
        except MalformedError:
            return text  # the schema says what was expected


def _plain_types(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _plain_types(member)
    elif origin is Annotated:
        yield from _plain_types(get_args(annotation)[0])
    else:
        yield tuple if origin is tuple else annotation


def _members(annotation: Any) -> list[type[Config]]:
    """The sections that an annotation names: none for a leaf, several for a union."""
    return [member for member in _plain_types(annotation) if isinstance(member, type) and issubclass(member, Config)]


def _show(value: Any) -> str:
    """A default in the way it would be typed."""
    if isinstance(value, tuple):
        return ",".join(map(_show, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _leaves(model: type[Config], section: _Section, default: Config | None, kind: str = "") -> Iterator[Option]:
    """Every leaf below a section, once for each kind that has it."""
    # a section's own fields before the sections inside it
    for name, field in sorted(model.model_fields.items(), key=lambda item: bool(_members(item[1].annotation))):
        value = field.get_default(call_default_factory=True) if default is None else getattr(default, name)
        members = _members(field.annotation)
        path = f"{section.path}.{name}".lstrip(".")
        if len(members) == 1:
            below = _Section(path, _one_line(members[0].__doc__))
            yield from _leaves(members[0], below, value if isinstance(value, members[0]) else None)
        elif members:
            union = {str(member.model_fields["kind"].default): member for member in members}
            below = _Section(path, _one_line(field.description), tuple(union))
            for key, member in union.items():
                described = _Variant(key, member.model_fields["kind"].annotation, _one_line(member.__doc__), value.kind)
                yield Option(below, "kind", (described,))
                yield from _leaves(member, below, value if isinstance(value, member) else None, key)
        elif not kind or name != "kind":
            yield Option(section, name, (_Variant(kind, field.annotation, _one_line(field.description), value),))


@functools.cache
def schema_options() -> Mapping[str, Option]:
    """Every option by dotted path; a field that several kinds share is one option."""
    options: dict[str, Option] = {}
    for leaf in _leaves(Recipe, _Section("", "The run as a whole."), Recipe()):
        known = options.get(leaf.path)
        options[leaf.path] = Option(leaf.section, leaf.name, (*known.variants, *leaf.variants)) if known else leaf
    return options
