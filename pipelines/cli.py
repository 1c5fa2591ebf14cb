"""The command line of every verb, made from the one schema: `--recipe FILE` and a dotted option for every field.

    schema defaults < recipe file < environment (GRUN_TRAIN__EPOCHS=5) < command line (--train.epochs 5)

A value is written as in a recipe file (YAML), with three exceptions: a text field takes its text as it stands, so that
`--request.id 007` stays `007`; a list may leave out its brackets; `none` clears a field that may be unset.
"""

import argparse
import functools
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import Discriminator

from grun.config import Recipe, merge, read_recipe_file
from grun.errors import ConfigError, near_miss
from pipelines import console
from pipelines.options import Option, schema_options

__all__ = ["RECIPES", "Parser", "next_step", "parse_command"]

RECIPES = Path(__file__).parent / "recipes"
"""Recipes that can be given by bare name."""

_PREFIX = "GRUN_"
_SECRETS = frozenset({"GRUN_API_KEY"})
"""Variables of ours that are no fields: a recipe is shown and stored."""


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps to the width of the terminal, keeps line breaks, and starts every explanation on a line of its own."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [part for line in text.splitlines() for part in textwrap.wrap(line, width, break_on_hyphens=False) or [""]]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + part for part in self._split_lines(text, width - len(indent)))


class Parser(argparse.ArgumentParser):
    """argparse that raises our errors."""

    def error(self, message: str) -> NoReturn:
        """What is wrong with the command line."""
        raise ConfigError(f"{message}; `--help` lists all options")

    def print_help(self, file: Any = None) -> None:  # noqa: ARG002 - argparse's signature
        """Print it where results go."""
        console.result(self.format_help())


def _parser(
    description: str, options: Mapping[str, Option], extra: Callable[[argparse.ArgumentParser], None] | None, subcommand: str
) -> Parser:
    command = f"python pipelines/{Path(sys.argv[0]).name}{subcommand and ' '}{subcommand}"
    changed = (
        f"  {command} --recipe my.yaml --train.epochs 5\n      a recipe file, with one field changed\n"
        f"  {_PREFIX}TRAIN__EPOCHS=5 {command}\n      the same by the environment, `__` between the levels"
        if "train.epochs" in options
        else f"  {command} --recipe my.yaml\n      with the output folder of a recipe file"
    )
    parser = Parser(
        usage=f"{command} [--recipe FILE] [--field value ...]",
        description=f"{description}\n\nexamples:\n"
        f"  {command}\n      the embedded default: no file, no network, no GPU\n"
        f"{changed}",
        epilog="The command line wins over the environment, the environment over the recipe file, the file over the defaults.\n"
        "Values are written as in a recipe file: 5, 4e-3, true. A list is 3,5 or [3,5]. `none` clears a field that may be unset. "
        "Where a section has kinds, a field marked `kind ...` belongs to those only.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    shipped = ", ".join(_recipe_names())
    parser.add_argument("--recipe", metavar="FILE", help=f"A YAML recipe, or the name of one in pipelines/recipes: {shipped}.")
    if extra is not None:
        extra(parser)
    groups: dict[str, Any] = {}
    for path, option in options.items():
        section = option.section
        if section.path not in groups:
            groups[section.path] = parser.add_argument_group(section.path or "run", section.summary)
        text = option.help.replace("%", "%%")
        groups[section.path].add_argument(f"--{path}", dest=path, default=argparse.SUPPRESS, metavar=option.metavar, help=text)
    return parser


def _not_understood(parser: Parser, argument: str) -> ConfigError:
    """The error for an argument that the parser has no use for."""
    name = argument.split("=")[0]
    if name.startswith("-"):
        known = [option for action in parser._actions for option in action.option_strings]
        return ConfigError(f"unknown option `{name}`{near_miss(name, known)}; `--help` lists all options")
    return ConfigError(f"every value must follow its option, got {argument!r} alone; write `--field value`, and a list as 3,5")


def _recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _find_recipe(name: str) -> Path:
    """A path, or the bare name of a recipe of ours; ConfigError where it is neither."""
    for path in (Path(name), RECIPES / name, RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    names = _recipe_names()
    raise ConfigError(
        f"`--recipe` must be a file or one of the recipes {', '.join(names)}, got {name!r}{near_miss(Path(name).stem, names)}"
    )


def _from_environment(options: Mapping[str, Option]) -> dict[str, Any]:
    """Values of the `GRUN_...` variables by dotted path; ConfigError where one names no field, or two the same."""
    paths = {f"{_PREFIX}{path.replace('.', '__')}".upper(): path for path in options}
    values: dict[str, Any] = {}
    for variable, text in os.environ.items():
        name = variable.upper()
        if not name.startswith(_PREFIX) or name in _SECRETS:
            continue
        if name not in paths:
            raise ConfigError(
                f"a variable `{_PREFIX}...` must name a field of the recipe, got `{variable}`{near_miss(name, paths)}; "
                "rename or unset it"
            )
        if paths[name] in values:
            raise ConfigError(f"a field must be set by one variable, got `{name}` in two spellings; unset one")
        values[paths[name]] = options[paths[name]].read(text)
    return values


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path as nested sections."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *parents, leaf = path.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return nested


def _fields_of_kind(section: str, kind: str) -> set[str]:
    return {option.name for option in schema_options().values() if option.section.path == section and kind in option.kinds}


def _lay_over(below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Merge, letting the schema infer a kind from the fields where it can: `data.path` alone turns the testbed into a folder."""
    for name, field in Recipe.model_fields.items():
        values, old = layer.get(name), below.get(name)
        infer = next((mark.discriminator for mark in field.metadata if isinstance(mark, Discriminator)), None)
        if not callable(infer) or not isinstance(values, Mapping) or not isinstance(old, Mapping) or "kind" in values:
            continue
        # the kind below stays unless the inferred one has more of the fields that are given
        candidates = (str(old.get("kind")), str(infer(values)))
        kind = max(candidates, key=lambda candidate: len(values.keys() & _fields_of_kind(name, candidate)))
        layer = merge({name: {"kind": kind}}, layer)
    return merge(below, layer)


def _check_kinds(values: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse with ConfigError a field that the kind in effect does not have, and name the kinds that have it."""
    for option in map(schema_options().__getitem__, given):
        section: Any = values
        for part in option.path.split(".")[:-1]:
            section = section.get(part, {})
        kind = section.get("kind")
        if kind in option.section.kinds and kind not in option.kinds:
            raise ConfigError(
                f"`{option.path}` is a field of kind {' or '.join(option.kinds)}, got it with kind {kind}; "
                f"drop it or set `--{option.section.path}.kind {option.kinds[0]}`"
            )


def parse_command(
    description: str,
    argv: Sequence[str] | None = None,
    *,
    extra: Callable[[argparse.ArgumentParser], None] | None = None,
    default_recipe: Path | None = None,
    sections: tuple[str, ...] | None = None,
    subcommand: str = "",
) -> tuple[Recipe, argparse.Namespace]:
    """Read defaults, recipe file, environment and command line into one validated recipe; `--help` prints and exits.

    Args:
        description: what the verb does, in a sentence.
        argv: the arguments; None: those of the process.
        extra: adds a verb's own options to the parser.
        default_recipe: recipe file where none is given.
        sections: top-level sections whose fields are options of this verb; None: all. `name`, `seed` and `output` always are.
        subcommand: what follows the file's name in the command, with its own arguments: `show ID`.

    Returns:
        the recipe, and the values of the verb's own options; `again` holds the arguments that make the same recipe once more.

    Raises:
        ConfigError: whatever is wrong, with the near miss of an unknown name.
    """
    options = schema_options()
    offered = {
        path: option
        for path, option in options.items()
        if sections is None or not option.section.path or path.split(".")[0] in sections
    }
    parser = _parser(description, offered, extra, subcommand)
    arguments, rest = parser.parse_known_args(argv)
    if rest:
        raise _not_understood(parser, rest[0])
    own = vars(arguments)
    name = own.pop("recipe")
    file = _find_recipe(name) if name is not None else default_recipe
    texts = {path: own.pop(path) for path in [path for path in own if path in options]}
    typed = {path: options[path].read(text) for path, text in texts.items()}
    recipe_option = [] if name is None else ["--recipe", name]
    again = shlex.join([*recipe_option, *(part for path, text in texts.items() for part in (f"--{path}", text))])
    environment = _from_environment(options)
    layers = {
        f"recipe {str(file)!r}": read_recipe_file(file) if file is not None else {},
        "the environment": _nest(environment),
        "the command line": _nest(typed),
    }
    values = functools.reduce(_lay_over, layers.values(), Recipe().model_dump(mode="json"))
    _check_kinds(values, {**environment, **typed})
    where = " with ".join(source for source, layer in layers.items() if layer) or "the default"
    return Recipe.parse(values, where=where), argparse.Namespace(**own, again=again)


def next_step(verb: str, again: str, purpose: str, own: str = "") -> str:
    """A command to go on with, about the same request: it repeats the options that this command was given.

    Args:
        again: what :func:`parse_command` gave.
        own: options of the verb's own.
    """
    command = " ".join(part for part in (f"python pipelines/{verb}.py", own, again) if part)
    return f"{command}    {purpose}"
