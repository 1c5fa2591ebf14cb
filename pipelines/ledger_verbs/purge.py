"""Purge a request: delete its text, and record that. Adapters and numbers stay, and so does the chain.

What goes, whatever request it was made for: prepared folders and prefix caches with any of its records, then the copy in the
vault, then the entry is written. Interrupted in between, the same command finishes it. Given again later, it deletes what has
come back, say in another output folder.

Of caches at `cache.uri`, nodes have copies: those on this node go at once, and those on the nodes of the cluster that `RAY_ADDRESS`
names. Any other node deletes its own when it next needs a cache; until then it is named, here and by `cache.py`.
"""

import argparse

from grun.config import Recipe
from pipelines.console import note, summary
from pipelines.ledger_store import LedgerStore
from pipelines.ledger_verbs.steps import ask_for_request, ledger_step
from pipelines.node_copies import copies_left, sweep_nodes
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
        remove_traces(recipe, traces)
        swept = sweep_nodes(recipe)
        had_text = vault.remove(state.id)
        entry = None if was_purged else store.append("purged", state.id, lease=lease)
    left = copies_left(recipe)
    if left:
        note(
            f"copies of deleted caches are left on {len(left)} node(s) that cannot be reached from here, {', '.join(left)}: each deletes its "
            "own when a run there next needs a cache, or by `cache.py --prune` on it; if a node is no more, `cache.py --gone-nodes NAME`"
        )
    if recipe.tracking.keep_text:
        note("reports that were made with `tracking.keep_text` may quote it, and are left as they are")
    summary(
        f"purged the text of request {state.id}",
        {
            "vault": "deleted" if had_text else "held no copy",
            "prepared folders": ", ".join(path.name for path in traces.prepared) or "none had any of it",
            "prefix caches": ", ".join(path.name for path in traces.caches) or "none had any of it",
            **(
                {
                    f"at {recipe.cache.uri}": ", ".join(traces.shared) or "none had any of it",
                    "copies on nodes": f"deleted: {', '.join(swept) or 'none'}; left: {', '.join(left) or 'none'}",
                }
                if recipe.cache.uri is not None
                else {}
            ),
            "entry": "none, it was recorded before" if entry is None else f"{entry.sequence}, digest {entry.digest[:12]}",
        },
        [ledger_step("verify", arguments.again, "prove that nothing else was altered")],
    )
    return 0
