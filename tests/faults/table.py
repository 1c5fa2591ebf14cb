"""The fault table: a row beside each test that makes it, printed for RESULTS.md.

python -m tests.faults.table
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.faults.injection import Injection

__all__ = ["Row", "as_markdown", "row", "rows"]

_Test = TypeVar("_Test", bound=Callable[..., object])

_FOLDER = Path(__file__).parent
_ROWS: list["Row"] = []


@dataclass(frozen=True)
class Row:
    """One fault."""

    group: str
    """What breaks: "workers", "MLflow", "disks", ..."""
    fault: str
    """What happens."""
    where: str
    """In which verb, at which point."""
    sees: str
    """What the user sees of it."""
    lost: str
    """What was lost."""
    broken: tuple[Injection, ...]
    """What breaks the safeguard: with it the test fails."""
    file: str
    function: str
    case: str | None

    @property
    def node_id(self) -> str:
        """The test, as pytest names it."""
        return f"tests/faults/{self.file}::{self.function}{f'[{self.case}]' if self.case else ''}"


def row(
    group: str,
    fault: str,
    *,
    where: str,
    sees: str,
    broken: Injection | tuple[Injection, ...],
    lost: str = "nothing",
    case: str | None = None,
) -> Callable[[_Test], _Test]:
    """Give a test its row of the table; one of several cases of a parametrised test is named by its id."""

    def decorate(test: _Test) -> _Test:
        file, name = f"{test.__module__.rpartition('.')[2]}.py", test.__qualname__.replace(".", "::")
        guards = broken if isinstance(broken, tuple) else (broken,)
        _ROWS.append(Row(group, fault, where, sees, lost, guards, file, name, case))
        return test

    return decorate


def rows() -> list[Row]:
    """All rows, by what breaks; imports every test module."""
    for path in sorted(_FOLDER.glob("test_*.py")):
        importlib.import_module(f"tests.faults.{path.stem}")
    # pytest imports a module for itself, so that its rows may have come twice
    return sorted(dict.fromkeys(_ROWS), key=lambda one: (one.group, one.file))


def as_markdown() -> str:
    """The table as RESULTS.md has it."""
    lines = ["| what breaks | fault | where | what the user sees | lost |", "|---|---|---|---|---|"]
    lines += [f"| {one.group} | {one.fault} | {one.where} | {one.sees} | {one.lost} |" for one in rows()]
    return "\n".join(lines)


if __name__ == "__main__":
    # the tests register their rows with the module by its own name, which is not this one
    print(importlib.import_module("tests.faults.table").as_markdown())
