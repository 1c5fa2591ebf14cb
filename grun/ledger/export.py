"""A ledger as one file: an entry a line, as JSON."""

from pathlib import Path

from grun.errors import LedgerError
from grun.ledger.chain import Ledger
from grun.ledger.entry import LedgerEntry
from grun.reading import MalformedError, read_text, reason_of

__all__ = ["parse_export", "to_export"]

_MAX_BYTES = 2**30
"""Of an export: some hundred thousand entries."""


def to_export(ledger: Ledger) -> str:
    """The lines of a ledger."""
    return "".join(f"{entry.to_json()}\n" for entry in ledger.entries)


def parse_export(path: Path) -> Ledger:
    """Read and verify an exported ledger.

    Raises:
        LedgerError: the file cannot be read, or is not as it was written; with the line.
    """
    try:
        text = read_text(path, limit=_MAX_BYTES)
    except (OSError, MalformedError) as error:
        raise LedgerError(
            f"an exported ledger must be a readable file, got {str(path)!r} ({reason_of(error)}); check the path"
        ) from None
    if text and not text.endswith("\n"):
        raise LedgerError(f"an exported ledger must end with a whole line, got {str(path)!r} cut off; export it again")
    lines = text.split("\n")[:-1]
    return Ledger.read(
        LedgerEntry.parse(line, where=f"line {number} of {str(path)!r}") for number, line in enumerate(lines, start=1)
    )
