"""The command line of every verb, made from the one schema: `--recipe FILE` and a dotted option for every field.

    schema defaults < recipe file < environment (GRUN_TRAIN__EPOCHS=5) < command line (--train.epochs 5)

Values are YAML (`5`, `true`, `[3, 5]`, `null`), except that a text field takes its text as it stands; a plain comma
list serves for a list.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from grun.config import Recipe, merge, read_recipe_file
from grun.errors import ConfigError, GrunError, near_miss
from pipelines import console

__all__ = ["RECIPES", "parse_command", "run_command"]

RECIPES = Path(__file__).parent / "recipes"
_PREFIX = "GRUN_"


@dataclass(frozen=True)
class _Option:
    """A leaf of the schema: one or more fields (of the members of a union) at one dotted path."""

    path: str
    field: FieldInfo
    default: Any
    kinds: tuple[str, ...]
    """The kinds of its union that have it; empty outside unions."""

    @property
    def is_text(self) -> bool:
        """Whether the value is taken as it stands."""
        return any(leaf in (str, Path) or get_origin(leaf) is Literal for leaf in _leaves(self.field.annotation))

    @property
    def is_list(self) -> bool:
        """Whether a comma list is meant."""
        return any(get_origin(leaf) is tuple for leaf in _leaves(self.field.annotation))

    def help(self) -> str:
        """Docstring, choices, default, and the kinds it belongs to."""
        choices = [
            str(value) for leaf in _leaves(self.field.annotation) if get_origin(leaf) is Literal for value in get_args(leaf)
        ]
        parts = [" ".join((self.field.description or "").split())]
        if choices and self.path.rsplit(".", 1)[-1] != "kind":
            parts.append(f"One of: {', '.join(choices)}.")
        if self.kinds:
            parts.append(f"Kinds: {', '.join(self.kinds)}.")
        shown = "unset" if self.default is None else "none, must be given" if self.default is PydanticUndefined else self.default
        parts.append(f"Default: {shown}.")
        return " ".join(part for part in parts if part).replace("%", "%%")


def _leaves(annotation: Any) -> Iterator[Any]:
    """The members of nested unions and annotations."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (tuple, Literal) or not arguments:
        yield annotation
        return
    for argument in arguments:
        if isinstance(argument, type) or get_origin(argument) is not None:
            yield from _leaves(argument)


def _options(model: type[BaseModel], prefix: str = "", default: Any = None, kinds: tuple[str, ...] = ()) -> dict[str, _Option]:
    """Every leaf below a section, by dotted path."""
    found: dict[str, _Option] = {}
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        value = getattr(default, name, None) if isinstance(default, model) else field.get_default(call_default_factory=True)
        sections = [leaf for leaf in _leaves(field.annotation) if isinstance(leaf, type) and issubclass(leaf, BaseModel)]
        if not sections:
            found[path] = _Option(path, field, value, kinds)
        for section in sections:
            kind = (section.model_fields["kind"].default,) if len(sections) > 1 else ()
            for key, option in _options(section, f"{path}.", value, kind).items():
                known = found.get(key)
                # a field that several kinds share is one option
                found[key] = option if known is None else _Option(key, known.field, known.default, known.kinds + option.kinds)
    return found


def _read(option: _Option, text: str) -> Any:
    if text.strip().lower() in ("null", "none", "~"):
        return None
    if option.is_text:
        return text
    if option.is_list and not text.strip().startswith("["):
        text = f"[{text}]"
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the schema says what was expected


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *parents, leaf = path.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return nested


class _Parser(argparse.ArgumentParser):
    """argparse that raises our errors and knows near misses."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def _parser(description: str, options: Mapping[str, _Option], extra: Callable[[argparse.ArgumentParser], None] | None) -> _Parser:
    script = Path(sys.argv[0]).name
    parser = _Parser(
        usage=f"python pipelines/{script} [--recipe FILE] [--FIELD VALUE ...]",
        description=description,
        epilog="Every field can also be set in a recipe file or by an environment variable, for instance GRUN_TRAIN__EPOCHS=5. "
        "The command line wins over the environment, the environment over the recipe, the recipe over the defaults.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe", metavar="FILE", help="a YAML file with sections and fields, or the name of one in pipelines/recipes"
    )
    if extra is not None:
        extra(parser)
    groups: dict[str, Any] = {"": parser.add_argument_group("run")}
    for path, option in options.items():
        section = path.split(".")[0] if "." in path else ""
        if section not in groups:
            documentation = Recipe.model_fields[section].description
            groups[section] = parser.add_argument_group(section, documentation)
        groups[section].add_argument(f"--{path}", dest=path, default=argparse.SUPPRESS, metavar="VALUE", help=option.help())
    return parser


def _recipe_path(name: str) -> Path:
    """A path, or the bare name of a recipe of ours.

    Raises:
        ConfigError: neither.
    """
    for path in (Path(name), RECIPES / name, RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    raise ConfigError(f"`--recipe` must be a file or one of {names}, got {name!r}{near_miss(name, names)}")


def _environment(options: Mapping[str, _Option]) -> dict[str, Any]:
    """Values of `GRUN_...` variables, by dotted path.

    Raises:
        ConfigError: a variable that names no field.
    """
    names = {path.replace(".", "__").upper(): path for path in options}
    values = {}
    for variable, text in os.environ.items():
        if not variable.upper().startswith(_PREFIX):
            continue
        name = variable[len(_PREFIX) :].upper()
        if name not in names:
            known = [f"{_PREFIX}{key}" for key in names]
            raise ConfigError(
                f"an environment variable `{_PREFIX}...` must name a field, got `{variable}`{near_miss(variable.upper(), known)}"
            )
        values[names[name]] = _read(options[names[name]], text)
    return values


def parse_command(
    description: str,
    argv: Sequence[str] | None = None,
    *,
    extra: Callable[[argparse.ArgumentParser], None] | None = None,
) -> tuple[Recipe, argparse.Namespace]:
    """Read recipe, environment and command line into one validated recipe.

    Args:
        extra: adds a verb's own options to the parser.

    Returns:
        the recipe, and the verb's own options.

    Raises:
        ConfigError: whatever is wrong, with the near miss of an unknown name.
    """
    options = _options(Recipe, default=Recipe())
    parser = _parser(description, options, extra)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        known = [option for action in parser._actions for option in action.option_strings]
        raise ConfigError(f"unknown option `{name}`{near_miss(name, known)}; see --help")
    values = vars(given)
    recipe_file = _recipe_path(given.recipe) if given.recipe else None
    where = f"recipe {str(recipe_file)!r}" if recipe_file else "the command line"
    below = read_recipe_file(recipe_file) if recipe_file else {}
    if recipe_file:
        Recipe.parse(below, where=where)
    set_here = {path: _read(options[path], text) for path, text in values.items() if path in options}
    layers = merge(merge(below, _nest(_environment(options))), _nest(set_here))
    return Recipe.parse(layers, where=where), given


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a verb and end the process with a status that tells the truth.

    0 done, 1 a defect of ours, 2 a mistake that the user can mend, 130 interrupted; a verb may add its own.
    """

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        status = main()
    except GrunError as error:
        console.error(str(error))
        status = 2
    except KeyboardInterrupt:
        console.note("interrupted; the same command continues where this one stopped")
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception:  # noqa: BLE001 - the last resort of a process
        traceback.print_exc()
        console.error("this is a defect of the program, not of your input; please report it with the lines above")
        status = 1
    sys.exit(status)
