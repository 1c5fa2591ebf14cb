"""The next request from where it is to a promoted stack: train, stack, judge every request of the stack again, promote or say why not.

Every step is recorded in the ledger and skipped where it is done, so the same command goes on where another one was killed.
Exit status: 0 promoted, or nothing to do; 3 not promoted, the champion is as it was; 2 a mistake in the input.
"""

import argparse

from grun.config import Recipe
from pipelines.console import note
from pipelines.sequencing.commands import note_waiting, on_cluster, open_work, tell
from pipelines.sequencing.promoting import serve_stack
from pipelines.sequencing.training import check_request, next_request, train_request

__all__ = ["run"]


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Bring the next request to a promoted stack."""
    with open_work(recipe) as work:
        ledger = work.ledger
        state = next_request(ledger)
        if state is None:
            note("nothing to do: no request is pending")
            note_waiting(ledger)
            return 0
        if state.status != "trained":
            check_request(work.recipe, work.shared, ledger, state)
        with on_cluster(work):
            if state.status != "trained":
                train_request(work, state.id)
            served = serve_stack(work, state.id, (*work.ledger.active, state.id), done="promoted")
        return tell(work, served, f"request {state.id}", arguments)
