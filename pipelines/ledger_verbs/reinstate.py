"""Reinstate a request that was revoked: its adapter joins the stack again, as the last one, if the stack still earns it.

Without an adapter it waits for `next` again. The same command goes on where another one was killed.
"""

import argparse

from grun.config import Recipe
from pipelines.console import summary
from pipelines.ledger_verbs.steps import ask_for_reason, ask_for_request, ledger_step, tell_repeated
from pipelines.sequencing.commands import on_cluster, open_work, tell
from pipelines.sequencing.promoting import serve_stack

__all__ = ["options", "run"]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    ask_for_request(parser)
    ask_for_reason(parser)


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Reinstate it."""
    with open_work(recipe) as work:
        ledger = work.ledger
        if (entry := ledger.repeats("reinstated", arguments.id, arguments.reason)) is not None:
            return tell_repeated(entry, "reinstated", arguments.again)
        before = ledger.state(arguments.id)
        ledger.append("reinstated", before.id, by="-")  # refused before anything is started
        if before.adapter is not None:
            with on_cluster(work):
                members = (*ledger.active, before.id)
                served = serve_stack(work, before.id, members, done="reinstated", reason=arguments.reason)
            return tell(work, served, f"reinstating request {before.id}", arguments)
        work.record("reinstated", before.id, reason=arguments.reason)
    summary(
        f"reinstated request {before.id}",
        {"reason": arguments.reason, "state": "pending: it was never trained"},
        [ledger_step("next", arguments.again, "go on with the next request")],
    )
    return 0
