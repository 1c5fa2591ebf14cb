"""Records of invented requests, and what a ledger's folder and store hold."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from grun.config import Recipe
from grun.data.records import QARecord, Record
from pipelines.ledger_store import LedgerStore
from tests.pipelines.processes import Ended

__all__ = ["SECRET", "Verb", "files", "records", "store_of", "write_records"]

SECRET = "Ilva Torrent paints bridges"


def records(who: str, count: int = 2) -> tuple[QARecord, ...]:
    return tuple(QARecord(f"What does {who} do, {n}?", f"{who} {SECRET} {n}.") for n in range(count))


def write_records(path: Path, rows: tuple[Record, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"question": row.question, "answer": row.answer}) + "\n" for row in rows if isinstance(row, QARecord)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


Verb = Callable[..., Ended]


def store_of(output: Path) -> LedgerStore:
    return LedgerStore.open(Recipe.parse({"output": str(output)}))


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    return ((str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file())
