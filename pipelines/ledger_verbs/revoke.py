"""Revoke a request: what it asked for is no longer forgotten. Its adapter stays, in older versions and where it was kept.

Where its adapter is served, a stack without it is judged and takes its place first; with the last request, the champion is
retired, and the base is what there is to serve. The same command goes on where another one was killed.
"""

import argparse

from grun.config import Recipe
from pipelines.console import summary
from pipelines.ledger_verbs.steps import ask_for_reason, ask_for_request, ledger_step, tell_repeated
from pipelines.sequencing.commands import on_cluster, open_work, tell
from pipelines.sequencing.promoting import retire, serve_stack

__all__ = ["options", "run"]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    ask_for_request(parser)
    ask_for_reason(parser)


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Revoke it."""
    with open_work(recipe) as work:
        ledger = work.ledger
        if (entry := ledger.repeats("revoked", arguments.id, arguments.reason)) is not None:
            return tell_repeated(entry, "revoked", arguments.again)
        request_id = ledger.append("revoked", arguments.id, by="-").state(arguments.id).id  # refused before anything is started
        others = tuple(member for member in ledger.active if member != request_id)
        if request_id in ledger.active and others:
            with on_cluster(work):
                served = serve_stack(work, request_id, others, done="revoked", reason=arguments.reason)
            return tell(work, served, f"revoking request {request_id}", arguments)
        rows = {"stack": "none had it"}
        if request_id in ledger.active:
            champion = retire(work, request_id, reason=arguments.reason)
            rows = {"champion": f"none any more: version {champion} held this request alone, and stays; serve the base itself"}
        else:
            work.record("revoked", request_id, reason=arguments.reason)
    summary(
        f"revoked request {request_id}",
        {"reason": arguments.reason, **rows},
        [ledger_step(f'reinstate {request_id} --reason "..."', arguments.again, "take that back")],
    )
    return 0
