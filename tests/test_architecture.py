"""The house: which package may import which, read from the source without importing it."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import grun

ROOT = Path(__file__).parents[1]
TORCH_FREE = ("grun.config", "grun.errors", "grun.requests", "grun.ledger")


@cache
def modules_of(package: str) -> dict[str, ast.Module]:
    """Every module of a package by dotted name, parsed."""
    parsed = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        parsed[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return parsed


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports, wherever in it that happens."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            assert node.module is not None
            # `from grun import config` names a module; `from grun.config import Recipe` does not
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(
    ("importers", "forbidden"),
    [
        (("grun",), ("ray", "mlflow", "deepspeed", "pipelines", "tune_spaces")),
        (("tune_spaces",), ("pipelines", "mlflow", "deepspeed", "torch")),
        (TORCH_FREE, ("torch", "transformers", "pyreft", "numpy", "grun.data", "grun.lm")),
        (("grun.objectives",), ("grun.lm", "grun.interventions", "transformers")),
        (("grun.gates", "grun.interventions"), ("grun.lm", "grun.data", "grun.objectives")),
        (("grun.data",), ("grun.lm", "grun.gates", "grun.interventions", "grun.training", "grun.evaluation")),
        (("grun.lm",), ("grun.training", "grun.evaluation", "grun.adapters", "grun.objectives")),
        (("grun.training",), ("grun.evaluation", "grun.promotion")),
    ],
    ids="+".join,
)
def test_imports_go_one_way(importers: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    package = importers[0].split(".")[0]
    broken = [
        f"{name} imports {imported}"
        for name, tree in modules_of(package).items()
        if inside(name, importers)
        for imported in imports_of(tree)
        if inside(imported, forbidden)
    ]
    assert broken == []


def test_parts_of_grun_do_not_import_each_other_in_a_circle() -> None:
    parts: dict[str, set[str]] = {}
    for name, tree in modules_of("grun").items():
        part = ".".join(name.split(".")[:2])
        imported = {".".join(target.split(".")[:2]) for target in imports_of(tree) if target.startswith("grun.")}
        parts.setdefault(part, set()).update(imported - {part})
    assert list(TopologicalSorter(parts).static_order())


GRUN_MODULES = sorted(module.name for module in pkgutil.walk_packages(grun.__path__, "grun."))


@pytest.mark.parametrize("name", ["grun", *GRUN_MODULES])
def test_every_module_says_what_it_is_for_and_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert [word for word in module.__all__ if not hasattr(module, word)] == []
    assert len(set(module.__all__)) == len(module.__all__)
