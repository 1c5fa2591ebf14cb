"""Show a request: what it is, and everything that was done for it."""

import argparse

from grun.config import Recipe
from grun.ledger import Details, LedgerEntry
from pipelines.console import summary
from pipelines.ledger_store import LedgerStore
from pipelines.ledger_verbs.overview import describe
from pipelines.ledger_verbs.steps import ask_for_request, ledger_step
from pipelines.vault import Vault

__all__ = ["options", "run"]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    ask_for_request(parser)


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Show it."""
    ledger = LedgerStore.open(recipe).read()
    state = ledger.state(arguments.id)
    vault = Vault.of(recipe)
    summary(
        f"request {state.id}: {describe(state)}",
        {
            "reason": state.reason,
            "by": state.by,
            "forget": f"{state.forget.kind} {state.forget.location}, digest {state.forget.digest}",
            **({"text": str(vault.path(state.id))} if vault.holds(state.id) else {}),
            **({"certificate": state.certificate.sentence} if state.certificate is not None else {}),
            **{name: f"{value:.4g}" for name, value in state.evaluation.items()},
            **{f"entry {entry.sequence}": _told(entry) for entry in ledger.history(state.id)},
        },
        [ledger_step("verify", arguments.again, "prove that nothing was altered")],
    )
    return 0


def _told(entry: LedgerEntry) -> str:
    """An entry in a line."""
    said = [f"{entry.action} at {entry.at:%Y-%m-%d %H:%M:%S} UTC by {entry.by}"]
    said += [" / ".join(entry.reason.splitlines())] if entry.reason and entry.action != "add" else []
    return "; ".join([*said, *_named(entry.details), f"digest {entry.digest[:12]}"])


def _named(details: Details) -> list[str]:
    """The digests that an entry names."""
    named = [f"{name} {digest[:12]}" for name in ("base", "adapter", "stack") if (digest := getattr(details, name)) is not None]
    place = [f"registry version {details.version}"] if details.version is not None else []
    members = [f"of {', '.join(details.members)}"] if details.members else []
    return [*named, *members, *place]
