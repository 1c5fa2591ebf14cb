"""Purge a request: delete its text, and record that. Adapters and numbers stay, and so does the chain.

What goes, whatever request it was made for: prepared folders and prefix caches with any of its records, then the copy in the
vault, then the entry is written. Interrupted in between, the same command finishes it. Given again later, it deletes what has
come back, say in another output folder.
"""

import argparse

from grun.config import Recipe
from pipelines.console import note, summary
from pipelines.ledger_store import LedgerStore
from pipelines.ledger_verbs.steps import ask_for_request, ledger_step
from pipelines.owner import owner, process_owner
from pipelines.purging import find_traces, remove_traces
from pipelines.vault import Vault

__all__ = ["options", "run"]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    ask_for_request(parser)


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Purge it."""
    store, vault = LedgerStore.open(recipe), Vault.of(recipe)
    state = store.read().state(arguments.id)
    # nobody trains meanwhile, on what is about to be deleted
    with store.hold(process_owner()) as lease:
        ledger = store.read()
        was_purged = ledger.state(state.id).purged
        if not was_purged:
            ledger.append("purged", state.id, by=owner())  # refused before anything is deleted
        traces = find_traces(recipe, vault, state)
        remove_traces(traces)
        had_text = vault.remove(state.id)
        entry = None if was_purged else store.append("purged", state.id, lease=lease)
    if recipe.tracking.keep_text:
        note("reports that were made with `tracking.keep_text` may quote it, and are left as they are")
    summary(
        f"purged the text of request {state.id}",
        {
            "vault": "deleted" if had_text else "held no copy",
            "prepared folders": ", ".join(path.name for path in traces.prepared) or "none had any of it",
            "prefix caches": ", ".join(path.name for path in traces.caches) or "none had any of it",
            "entry": "none, it was recorded before" if entry is None else f"{entry.sequence}, digest {entry.digest[:12]}",
        },
        [ledger_step("verify", arguments.again, "prove that nothing else was altered")],
    )
    return 0
