"""List the requests of a ledger, in the order in which they were added."""

import argparse

from grun.config import Recipe
from grun.ledger import RequestState
from pipelines.console import summary
from pipelines.ledger_store import LedgerStore
from pipelines.ledger_verbs.steps import ledger_step

__all__ = ["describe", "run"]


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """List them."""
    ledger = LedgerStore.open(recipe).read()
    again = arguments.again
    if ledger.of("pending"):
        steps = [ledger_step("next", again, "train the next pending request and promote the stack")]
    else:
        steps = [ledger_step("add", again, "add a request")]
    summary(
        f"ledger {recipe.ledger.name}: {len(ledger.states)} request(s), {len(ledger.active)} served, {len(ledger.entries)} entries",
        {
            **{state.id: describe(state) for state in ledger.states.values()},
            **({"served": f"{', '.join(ledger.active)} (in this order)"} if ledger.active else {}),
        },
        steps,
    )
    return 0


def describe(state: RequestState) -> str:
    """A request in a line."""
    text = ", text purged" if state.purged else ""
    stack = f", stack version {state.version}" if state.version is not None else ""
    return (
        f"{state.status}{text}: {state.forget.num_records} record(s), added {state.added_at:%Y-%m-%d}{stack}; entry {state.since}"
    )
