"""The fault table: every row's safeguard is a place that exists, and RESULTS.md has the table as the tests make it."""

import functools
import importlib
from pathlib import Path

import pytest

from tests.faults.injection import Injection
from tests.faults.table import Row, as_markdown, rows

RESULTS = Path(__file__).parents[2] / "RESULTS.md"
ROWS = rows()


def place(injection: Injection) -> object:
    module, _, name = injection.where.partition(":")
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


@pytest.mark.parametrize("row", ROWS, ids=[row.node_id.rpartition("/")[2] for row in ROWS])
def test_a_row_breaks_what_is_there(row: Row) -> None:
    """A place that does not exist would stop every process, and its test would fail for that."""
    assert row.broken, "a safeguard that cannot be broken is not proven"
    for injection in row.broken:
        assert callable(place(injection))
        if injection.do == "replace":
            assert injection.by is not None
            module, _, name = injection.by.partition(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_results_have_the_table() -> None:
    assert as_markdown() in RESULTS.read_text(encoding="utf-8"), "print it with `python -m tests.faults.table`, and put it there"
