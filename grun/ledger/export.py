"""A ledger as one file: an entry a line, as JSON."""

from pathlib import Path

from grun.errors import LedgerError
from grun.ledger.chain import Ledger
from grun.ledger.entry import LedgerEntry

__all__ = ["parse_export", "to_export"]


def to_export(ledger: Ledger) -> str:
    """The lines of a ledger."""
    return "".join(f"{entry.to_json()}\n" for entry in ledger.entries)


def parse_export(path: Path) -> Ledger:
    """Read and verify an exported ledger.

    Raises:
        LedgerError: the file cannot be read, or is not as it was written; with the line.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise LedgerError(f"an exported ledger must be a readable file, got {str(path)!r} ({reason}); check the path") from None
    if text and not text.endswith("\n"):
        raise LedgerError(f"an exported ledger must end with a whole line, got {str(path)!r} cut off; export it again")
    lines = text.split("\n")[:-1]
    return Ledger.read(
        LedgerEntry.parse(line, where=f"line {number} of {str(path)!r}") for number, line in enumerate(lines, start=1)
    )
