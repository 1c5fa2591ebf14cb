"""List the requests of a ledger, in the order in which they were added."""

import argparse

from grun.config import Recipe
from grun.errors import LedgerError
from grun.ledger import RequestState
from pipelines.console import note, summary
from pipelines.ledger_store import LedgerStore
from pipelines.ledger_verbs.artifacts import check_known
from pipelines.ledger_verbs.steps import ledger_step
from pipelines.vault import Vault

__all__ = ["describe", "run"]


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """List them."""
    ledger = LedgerStore.open(recipe).read()
    again = arguments.again
    try:
        check_known(Vault.of(recipe), ledger)
    except LedgerError as error:  # a list shows what there is
        note(str(error))
    if ledger.of("pending", "training", "trained"):
        steps = [ledger_step("next", again, "go on with the next request")]
    elif failed := ledger.of("failed"):
        steps = [ledger_step(f"train {failed[0].id}", again, "train a request that failed anew")]
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
