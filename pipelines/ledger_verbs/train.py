"""Train the adapter of one request; it is stacked and served by `next`.

The same command continues an interrupted training from its last checkpoint.
"""

import argparse

from grun.config import Recipe
from grun.errors import LedgerError
from grun.ledger import Ledger, RequestState
from pipelines.certifying import certificate_row
from pipelines.console import summary
from pipelines.ledger_verbs.steps import ledger_step
from pipelines.sequencing.commands import on_cluster, open_work
from pipelines.sequencing.training import check_request, next_to_train, train_request

__all__ = ["options", "run"]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    parser.add_argument("id", metavar="ID", nargs="?", help="the request [default: the next one that has no adapter]")


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Train it."""
    with open_work(recipe) as work:
        ledger = work.ledger
        chosen = _chosen(ledger, arguments.id)
        if chosen.status != "training":
            ledger.append("train", chosen.id, by="-")  # refused before anything is started
        check_request(work.recipe, work.shared, ledger, chosen)
        with on_cluster(work):
            train_request(work, chosen.id)
        state = work.state(chosen.id)
    summary(
        f"adapter for request {state.id}",
        {
            "adapter": f"digest {(state.adapter or '')[:12]}",
            **certificate_row(state.certificate),
            "state": state.status,
        },
        [ledger_step("next", arguments.again, "stack it, judge every request again, and move the champion")],
    )
    return 0


def _chosen(ledger: Ledger, request_id: str | None) -> RequestState:
    if request_id is not None:
        return ledger.state(request_id)
    if (state := next_to_train(ledger)) is None:
        raise LedgerError(
            f"a request must wait for its training, got none of {len(ledger.states)} that does; add one first, or name one that failed"
        )
    return state
