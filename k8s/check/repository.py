"""What the repository holds that manifests speak of: scripts and their options, recipe fields, variables, metrics, versions.

Everything is read from source, nothing of ours is run: a script's option exists if its source or the recipe's schema names it.
"""

import ast
import builtins
import functools
import pathlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pydantic
from pydantic import create_model

from grun.config import Config, Recipe
from k8s.check.strict_yaml import Document, load

__all__ = ["Repository"]

_ENVIRONMENT = re.compile(r"os\.environ(?:\.get|\.setdefault|\.pop)?$|os\.getenv$")
_CODE = ("grun", "pipelines", "tune_spaces", "k8s")


class Repository:
    """The files beside the manifests."""

    def __init__(self, root: Path) -> None:
        """Name the root; files are read when they are asked for."""
        self.root = root

    @functools.cached_property
    def versions(self) -> Mapping[str, str]:
        """The versions of `k8s/versions.yaml`."""
        path = self.root / "k8s/versions.yaml"
        return load(path.read_text(encoding="utf-8"), where=path)[0]

    @functools.cached_property
    def project(self) -> Mapping[str, Any]:
        """`pyproject.toml`."""
        return tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))

    @functools.cached_property
    def locked(self) -> Mapping[str, str]:
        """Version of every package in the lock."""
        text = (self.root / "requirements.lock").read_text(encoding="utf-8")
        return dict(re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^\s\\;]+)", text, re.MULTILINE))

    @functools.cached_property
    def secrets(self) -> Mapping[str, frozenset[str]]:
        """Keys of the Secrets that whoever installs has to bring, as the example names them."""
        path = self.root / "k8s/secrets.example.yaml"
        documents: list[Document] = load(path.read_text(encoding="utf-8"), where=path) if path.is_file() else []
        return {
            document["metadata"]["name"]: frozenset({**document.get("data", {}), **document.get("stringData", {})})
            for document in documents
        }

    @functools.cached_property
    def recipe_fields(self) -> frozenset[str]:
        """Dotted path of every field of a recipe."""
        return frozenset(_leaves(Recipe, ""))

    @functools.cached_property
    def metrics(self) -> frozenset[str]:
        """Names of the series that our server gives."""
        tree = ast.parse((self.root / "pipelines/serving/metrics.py").read_text(encoding="utf-8"))
        return frozenset(name for node in ast.walk(tree) for name in _series(node))

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """Environment variables that our code reads."""
        paths = [path for folder in _CODE for path in sorted((self.root / folder).rglob("*.py"))]
        return frozenset(name for path in paths for name in _read_variables(path.read_text(encoding="utf-8")))

    def file(self, path: str) -> Path | None:
        """The file of the repository that lies at an absolute path of the image; None where there is none."""
        inside = path.removeprefix("/app/")
        found = (self.root / inside).resolve()
        return found if inside != path and found.is_relative_to(self.root) and found.is_file() else None

    def subcommands(self, script: Path) -> frozenset[str]:
        """Words that a script wants first; none where it wants none."""
        for node in _parsed(script).body:
            if (
                isinstance(node, ast.Assign | ast.AnnAssign)
                and "SUBCOMMANDS" in _bound(node)
                and isinstance(node.value, ast.Dict)
            ):
                return frozenset(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
        return frozenset()

    def options(self, script: Path) -> frozenset[str]:
        """Options of a script, without their dashes."""
        sources = [script, *(self.root.glob("pipelines/ledger_verbs/*.py") if self.subcommands(script) else ())]
        own = {option for source in sources for option in _option_literals(source)}
        return frozenset({"help", "recipe", *own, *self.recipe_fields})

    def is_verb(self, script: Path) -> bool:
        """Whether a script is one of ours that take recipes."""
        return script.parent == self.root / "pipelines" and "run_command(main)" in script.read_text(encoding="utf-8")

    def defines(self, dotted: str) -> bool:
        """Whether `package.module:name` is written in the repository."""
        module, _, name = dotted.partition(":")
        path = self.root / (module.replace(".", "/") + ".py")
        if not name or not path.is_file():
            return False
        targets = [target for node in _parsed(path).body for target in _bound(node)]
        return name in targets

    def arguments(self, dotted: str) -> type[Config] | None:
        """The model of what an application (`package.module:name`) takes, made anew from its source; None where it has none."""
        module, _, name = dotted.partition(":")
        body = _parsed(self.root / (module.replace(".", "/") + ".py")).body if self.defines(dotted) else []
        builder = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == name), None)
        calls = [node.func for node in ast.walk(builder) if isinstance(node, ast.Call)] if builder else []
        models = {ast.unparse(call.value) for call in calls if isinstance(call, ast.Attribute) and call.attr == "model_validate"}
        return next((_model(node) for node in body if isinstance(node, ast.ClassDef) and node.name in models), None)


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _option_literals(path: Path) -> frozenset[str]:
    literals = (node.value for node in ast.walk(_parsed(path)) if isinstance(node, ast.Constant))
    return frozenset(text[2:] for text in literals if isinstance(text, str) and re.fullmatch(r"--[a-z][a-z._-]*", text))


def _bound(node: ast.stmt) -> Iterator[str]:
    """Names that a statement of a module binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _model(source: ast.ClassDef) -> type[Config]:
    """A model with the fields of a class, whose types are of the standard library or pydantic's."""
    fields: dict[str, Any] = {}
    for node in source.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = (_type(node.annotation), ast.literal_eval(node.value) if node.value else ...)
    return create_model(source.name, __base__=Config, **fields)


def _type(node: ast.expr) -> Any:
    """The type that an annotation names: a name, None, or several of them with `|`."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type(left) | _type(right)
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name):
            return next((getattr(place, name) for place in (builtins, pathlib, pydantic) if hasattr(place, name)), Any)
    return Any  # what is not understood is not checked


def _sections(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _leaves(model: type[Config], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        sections = list(_sections(field.annotation))
        below = f"{path}{name}"
        if not sections:
            yield below
        for section in sections:
            yield from _leaves(section, f"{below}.")


def _read_variables(source: str) -> Iterator[str]:
    """Names that stand literally where the environment is read, and constants in capitals that look like one of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and _ENVIRONMENT.search(ast.unparse(node.func)):
            found = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            found = node.slice
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and str(node.value.value).startswith("GRUN_"):
            found = node.value
        else:
            continue
        if isinstance(found, ast.Constant) and isinstance(found.value, str):
            yield found.value


def _series(node: ast.AST) -> Iterator[str]:
    """What Prometheus sees of a metric of the client library."""
    kinds = {"Counter": ("_total", "_created"), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count", "_created")}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds and node.args:
        name = node.args[0]
        if isinstance(name, ast.Constant):
            yield from (f"{name.value!s}{ending}" for ending in kinds[node.func.id])
