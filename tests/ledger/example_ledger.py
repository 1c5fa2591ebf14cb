"""A ledger with every kind of entry in it, every field filled somewhere."""

from datetime import UTC, datetime, timedelta
from typing import Any

from grun.ledger import Action, CertificateDetails, Details, Ledger
from grun.requests import Source

START = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)


def digest(letter: str) -> str:
    return letter * 64


def source(letter: str, count: int = 3) -> Source:
    return Source(kind="jsonl", location=f"{letter}.jsonl", num_records=count, digest=digest(letter))


def asked(letter: str) -> Details:
    return Details(forget=source(letter))


TRAINED = Details(
    data={"forget": digest("a"), "retain": digest("b")},
    counts={"retain": 12},
    base=digest("c"),
    adapter=digest("d"),
    run_id="run",
    certificate=CertificateDetails(digest=digest("e"), holds=True, sentence="At most 3 %."),
    evaluation={"forget/rouge_l_recall": 0.125},
    seconds={"train": 3.5},
)
STACKED = Details(members=("r1",), stack=digest("f"), model="grun-ledger-demo", version=1)

STEPS: tuple[tuple[Action, str, Details], ...] = (
    ("add", "r1", asked("1")),
    ("add", "r2", asked("2")),
    ("train", "r1", Details()),
    ("trained", "r1", TRAINED),
    ("stacked", "r1", STACKED),
    ("promoted", "r1", STACKED),
    ("train", "r2", Details()),
    ("failed", "r2", Details()),
    ("train", "r2", Details()),
    ("trained", "r2", TRAINED.model_copy(update={"adapter": digest("0")})),
    ("stacked", "r2", STACKED.model_copy(update={"members": ("r1", "r2"), "version": 2})),
    ("declined", "r2", Details(evaluation={"r1/forget/rouge_l_recall": 0.5})),
    ("revoked", "r1", Details()),
    ("purged", "r1", Details()),
    ("reinstated", "r1", Details(stack=digest("f"), version=1)),
)
"""Every action, in an order that the states allow."""


def append(ledger: Ledger, action: Action, request_id: str, details: Details | None = None, **more: Any) -> Ledger:
    at = START + timedelta(minutes=len(ledger.entries))
    return ledger.append(action, request_id, by="alice@host", reason=f"because {action}", details=details, at=at, **more)


def example_ledger(num_entries: int = len(STEPS)) -> Ledger:
    ledger = Ledger()
    for number, (action, request_id, details) in enumerate(STEPS[:num_entries]):
        ledger = append(ledger, action, request_id, details, fence=0 if action == "add" else 1 + number // 6)
    return ledger
