"""Verify a ledger: that its chain is whole, that it continues an earlier export, and that what it names is what is there.

With `--file` it is an export alone that is verified, and nothing else is needed: no registry, no vault.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from grun.config import Recipe
from grun.ledger import Ledger, parse_export
from pipelines.console import summary
from pipelines.ledger_store import LedgerStore, StoredLedger
from pipelines.ledger_verbs.artifacts import FoundTexts, check_artifacts, check_texts
from pipelines.ledger_verbs.steps import ledger_step

__all__ = ["options", "run"]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subcommand."""
    group = parser.add_argument_group("what with")
    group.add_argument("--against", metavar="FILE", help="an earlier export, which the ledger has to continue")
    group.add_argument("--file", metavar="FILE", help="verify this export, instead of the ledger in the registry")


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Verify it."""
    beyond: Callable[[], dict[str, str]] = dict
    earlier = parse_export(Path(arguments.against)) if arguments.against is not None else None
    if arguments.file is not None:
        ledger = parse_export(Path(arguments.file))
        title = f"the export {arguments.file} is whole"
    else:
        store = LedgerStore.open(recipe)
        stored = store.read_stored()
        ledger = stored.ledger
        title = f"the ledger {recipe.ledger.name} is whole"
        beyond = partial(_beyond, recipe, store, stored)
    rows = _counts(ledger)
    if earlier is not None:
        ledger.check_continues(earlier)
        rows["continues"] = f"{arguments.against}, {len(earlier.entries)} entries"
    rows |= beyond()
    keep = [] if arguments.file is not None else [ledger_step("export", arguments.again, "keep a copy elsewhere to compare with")]
    summary(title, rows, keep)
    return 0


def _counts(ledger: Ledger) -> dict[str, str]:
    return {
        "entries": f"{len(ledger.entries)}, each with the digest of the one before",
        "requests": f"{len(ledger.states)}, {len(ledger.active)} of them served",
        "head": ledger.head,
    }


def _absent(texts: FoundTexts) -> str:
    named = f" ({', '.join(texts.absent)})" if texts.absent else ""
    return f"{len(texts.absent)} are not there{named}"


def _beyond(recipe: Recipe, store: LedgerStore, stored: StoredLedger) -> dict[str, str]:
    """Check what the registry and the vault hold of what the entries name, and say what was checked."""
    found = check_artifacts(recipe, store.tracker, stored.ledger)
    texts = check_texts(recipe, stored.ledger)
    return {
        "void": f"{len(stored.void)} entries that came too late",
        "stacks": f"{found.stacks} in the registry are those that the entries name, {found.gone} are no longer there",
        "adapters": f"{found.adapters} in them are those that the entries name",
        "texts": f"{texts.same} in the vault are what was asked to be forgotten, {_absent(texts)}, {texts.purged} were purged",
    }
