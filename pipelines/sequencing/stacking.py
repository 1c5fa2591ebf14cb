"""From adapters to a stack that is registered: version N + 1 is version N and one more, or one less.

Adapters come from where training kept them, or out of an older version of the registry; in either case they are the ones that the
ledger names by their digests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grun.adapters import digest_adapter, digest_stack, member_folders, read_card, read_stack_card, save_stack
from grun.errors import AdapterError
from grun.ledger import Details, Ledger, LedgerEntry
from pipelines.sequencing.training import kept_adapter
from pipelines.sequencing.work import Work

__all__ = ["Stacked", "stack_version"]


@dataclass(frozen=True)
class Stacked:
    """A registered stack."""

    version: int
    digest: str
    members: tuple[str, ...]
    """The requests, in order."""
    run_id: str
    """The run that it came from, and that holds its report."""


def stack_version(work: Work, request_id: str, members: Sequence[str]) -> Stacked:
    """Make, register and record the stack of some requests, for the sake of one; found again where that was done already.

    Args:
        members: the requests, in order.

    Raises:
        AdapterError: an adapter is missing, damaged or for another base.
    """
    ledger = work.ledger
    if (found := _last_attempt(ledger, request_id, members)) is not None:
        return found
    sources = [(member, _adapter_of(work, ledger, member)) for member in members]
    cards = {member: read_card(folder) for member, folder in sources}
    folder = save_stack(sources, work.recipe.ledger.composition, work.folder("stacks", request_id))
    since = ledger.state(request_id).since
    with work.tracker.run(
        f"{work.recipe.ledger.name}: {len(members)} requests",
        key=work.run_key("stack", request_id, since),
        tags={"kind": "stack"},
    ) as run_id:
        tags = {"ledger": work.recipe.ledger.name, "request": request_id, "num_requests": str(len(members))}
        version = work.registry.register_candidate(work.model, run_id, folder, cards[members[0]].base, tags)
    digest = digest_stack(folder)
    details = Details(members=tuple(members), stack=digest, model=work.model, version=version, run_id=run_id)
    work.record("stacked", request_id, details=details)
    return Stacked(version, digest, tuple(members), run_id)


def _last_attempt(ledger: Ledger, request_id: str, members: Sequence[str]) -> Stacked | None:
    """The stack that a worker recorded before it vanished, if it is the one that is wanted."""
    last = ledger.history(request_id)[-1]
    details = last.details
    if last.action != "stacked" or details.members != tuple(members):
        return None
    assert details.version is not None
    assert details.stack is not None
    assert details.run_id is not None
    return Stacked(details.version, details.stack, details.members, details.run_id)


def _adapter_of(work: Work, ledger: Ledger, request_id: str) -> Path:
    """The adapter of a request, as the ledger names it.

    Raises:
        AdapterError: it is nowhere to be found.
    """
    digest = ledger.state(request_id).adapter
    assert digest is not None, "the ledger stacks requests with an adapter alone"
    kept = kept_adapter(work, request_id, digest)
    if kept.is_dir() and digest_adapter(kept) == digest:
        return kept
    held = _last_version_with(ledger, request_id, digest)
    if held is not None and held.details.version is not None:
        _version, folder = work.registry.download(work.model, held.details.version, work.folder("registry"))
        card = read_stack_card(folder)
        for member, path in zip(card.members, member_folders(folder, card), strict=True):
            if (member.request_id, member.adapter_digest) == (request_id, digest):
                return path
    raise AdapterError(
        f"the adapter of {request_id!r} must be where it was kept or in a registered stack, got neither {str(kept)!r} nor a version of "
        f"{work.model} with digest {digest[:12]}; restore the folder from a backup"
    )


def _last_version_with(ledger: Ledger, request_id: str, digest: str) -> LedgerEntry | None:
    """The last stack that was recorded with a request's adapter in it."""
    held = None
    adapter = None
    for entry in ledger.entries:
        if entry.request_id == request_id and entry.details.adapter is not None:
            adapter = entry.details.adapter
        if adapter == digest and entry.action == "stacked" and request_id in entry.details.members:
            held = entry
    return held
