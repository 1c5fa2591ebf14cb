"""What the subcommands that change what is served have in common: one worker at a time, checked before anything is started."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from grun.config import Recipe
from grun.ledger import Ledger
from pipelines.checks import check_tracking
from pipelines.cluster import check_resources, connected
from pipelines.console import check_writable, note, summary
from pipelines.ledger_store import LedgerStore
from pipelines.ledger_verbs.steps import ledger_step
from pipelines.owner import process_owner
from pipelines.prepare import teach_missing
from pipelines.promote import NOT_PROMOTED
from pipelines.registry import CHAMPION, Registry
from pipelines.sequencing.data import ledger_recipe, universe
from pipelines.sequencing.promoting import Served
from pipelines.sequencing.work import Work

__all__ = ["note_waiting", "on_cluster", "open_work", "tell"]


@contextmanager
def open_work(recipe: Recipe) -> Iterator[Work]:
    """Take the ledger's lease and read what all requests share, for the length of a `with` block.

    Raises:
        LedgerBusyError: another worker holds it.
        GrunError: what is wrong with data, ledger or stores; nothing has been started.
    """
    recipe = ledger_recipe(recipe)
    check_writable(recipe.output)
    check_tracking(recipe.tracking)
    shared = universe(recipe)
    store = LedgerStore.open(recipe)
    with store.hold(process_owner()) as lease:
        yield Work(recipe, shared, store.tracker, Registry(store.tracker), store, lease)


@contextmanager
def on_cluster(work: Work) -> Iterator[None]:
    """Connect to the cluster that the work needs, and teach the base that all requests share where it is not there."""
    with connected(work.recipe):
        check_resources(work.recipe)
        teach_missing(work.recipe, work.shared)
        yield


def tell(work: Work, served: Served, title: str, arguments: argparse.Namespace) -> int:
    """Print what became of a stack; returns the exit status."""
    stacked, ledger = served.stacked, work.ledger
    champion = work.registry.version_of(work.model, CHAMPION)
    summary(
        title,
        {
            "decision": f"{served.decision.decision.value}: version {stacked.version} of {work.model}, {len(stacked.members)} request(s)",
            **({} if served.promoted else served.decision.rows()),
            **served.report.rows(),
            "report": str(work.folder("judged", f"v{stacked.version}", "report.json")),
            "champion": "none" if champion is None else f"version {champion}: {', '.join(ledger.active)}",
        },
        _next_steps(ledger, arguments.again),
    )
    note_waiting(ledger)
    return 0 if served.promoted else NOT_PROMOTED


def _next_steps(ledger: Ledger, again: str) -> list[str]:
    steps = [ledger_step("next", again, "go on with the next request")] if ledger.of("pending", "training", "trained") else []
    return [*steps, ledger_step("list", again, "see all requests")]


def note_waiting(ledger: Ledger) -> None:
    """Say which requests nobody will go on with by himself."""
    for state in ledger.of("failed"):
        note(
            f"{state.id} is failed, and stays so until `request.py train {state.id}` trains it anew or `revoke {state.id}` takes it back"
        )
