"""Export a ledger to one file: the proof to keep elsewhere, which a later `verify --against` compares with."""

import argparse
from pathlib import Path

from grun.config import Recipe
from grun.errors import LedgerError
from grun.ledger import Ledger, parse_export, to_export
from grun.writing import write_text
from pipelines.console import check_writable, summary
from pipelines.ledger_store import LedgerStore
from pipelines.ledger_verbs.steps import ledger_step

__all__ = ["options", "run", "write_export"]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.add_argument_group("where to").add_argument(
        "--to", metavar="FILE", help="file to write [default: ledgers/<name>.jsonl in the output folder]"
    )


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Export it."""
    path = Path(arguments.to) if arguments.to is not None else recipe.output / "ledgers" / f"{recipe.ledger.name}.jsonl"
    check_writable(recipe.output)
    ledger = LedgerStore.open(recipe).read()
    write_export(ledger, path)
    summary(
        f"exported the ledger {recipe.ledger.name}",
        {"entries": str(len(ledger.entries)), "head": ledger.head, "file": str(path)},
        [ledger_step(f"verify --against {path}", arguments.again, "prove later that the ledger continues it")],
    )
    return 0


def write_export(ledger: Ledger, path: Path) -> None:
    """Write a ledger to a file, whole or not at all.

    An earlier export there is replaced by what continues it, and by nothing else: it may be the only proof of what was there.

    Raises:
        LedgerError: the file holds something else, or cannot be written.
    """
    if path.exists():
        ledger.check_continues(parse_export(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, to_export(ledger))
    except OSError as error:
        raise LedgerError(
            f"an export must be a file that can be written, got {str(path)!r} ({error.strerror}); choose another by `--to`"
        ) from None
