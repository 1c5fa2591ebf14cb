"""What has become of a request, and what may be done with it next: one table.

add -> pending -- train --> training -- trained --> trained -- stacked, promoted --> active
                               failed: failed -- train -->       declined: failed
revoked: any but training -> revoked -- reinstated --> active (with a stack), trained (with an adapter), pending (with text)
purged: active or revoked; the text is gone, adapter and numbers stay
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from grun.errors import LedgerError
from grun.ledger.entry import Action, CertificateDetails, LedgerEntry
from grun.requests import Source

__all__ = ["RequestState", "Status", "next_state"]

Status = Literal["pending", "training", "trained", "active", "revoked", "failed"]


@dataclass(frozen=True, slots=True)
class RequestState:
    """A request, as its entries left it."""

    id: str
    status: Status
    """`active`: in the stack that was promoted last."""
    forget: Source
    """What is to be forgotten, by digest."""
    reason: str
    """Why the request was made."""
    by: str
    """Who made it."""
    added_at: datetime
    since: int
    """Sequence number of its last entry."""
    purged: bool = False
    """Whether its text was deleted."""
    adapter: str | None = None
    """Digest of its adapter."""
    stack: str | None = None
    """Digest of the last stack that was made for it."""
    version: int | None = None
    """Registry version of that stack."""
    certificate: CertificateDetails | None = None
    """What its adapter promises."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """What was measured last."""


_NEEDS: Mapping[Action, tuple[Status, ...]] = {
    "train": ("pending", "training", "failed"),  # training: a worker that vanished is succeeded by another
    "trained": ("training",),
    "stacked": ("trained", "active", "revoked", "failed"),
    "promoted": ("trained",),
    "declined": ("trained", "active", "revoked", "failed"),
    "failed": ("training", "trained"),
    "revoked": ("pending", "trained", "active", "failed"),
    "reinstated": ("revoked",),
    "purged": ("active", "revoked"),
}
"""Statuses in which an action is allowed."""

_NEEDS_TOO: Mapping[Action, str] = {
    "train": " and has its text",
    "stacked": " and has an adapter",
    "promoted": " and has a stack",
    "declined": " and has an adapter",
    "reinstated": " and has an adapter or its text",
    "purged": " and not purged yet",
}
"""What an action needs besides the status."""

_COMMANDS: Mapping[Action, str] = {"train": "train", "revoked": "revoke", "reinstated": "reinstate", "purged": "purge"}
"""What a user can do about it, by the action that it leads to."""


def next_state(state: RequestState | None, entry: LedgerEntry) -> RequestState:
    """What an entry makes of its request.

    Args:
        state: the request so far; None for one that is not in the ledger. Whether another one has the same records is for the
            chain to know.

    Raises:
        LedgerError: the state does not allow it; with what is allowed.
    """
    if state is None:
        return _added(entry)
    if entry.action == "add":
        raise _added_twice(state, entry)
    if entry.action not in _possible(state):
        raise _refused(state, entry.action)
    details = entry.details
    _check_details(state, entry)
    if entry.action in ("trained", "reinstated"):  # an earlier stack does not speak for what comes now
        state = replace(state, stack=None, version=None)
    return replace(
        state,
        status=_status_after(state, entry),
        since=entry.sequence,
        purged=state.purged or entry.action == "purged",
        adapter=details.adapter or state.adapter,
        stack=details.stack or state.stack,
        version=details.version or state.version,
        certificate=details.certificate or state.certificate,
        evaluation=details.evaluation or state.evaluation,
    )


def _added(entry: LedgerEntry) -> RequestState:
    assert entry.action == "add"  # the chain has refused an unknown request
    if entry.details.forget is None:
        raise LedgerError(
            f"`add` must say what is to be forgotten, got {entry.request_id!r} without `details.forget`; give its digest"
        )
    return RequestState(
        id=entry.request_id,
        status="pending",
        forget=entry.details.forget,
        reason=entry.reason,
        by=entry.by,
        added_at=entry.at,
        since=entry.sequence,
    )


def _added_twice(state: RequestState, entry: LedgerEntry) -> LedgerError:
    same = entry.details.forget is not None and entry.details.forget.digest == state.forget.digest
    what, remedy = "the same records again", "there is nothing left to do"
    if not same:
        what, remedy = "other records", "give the new request an id of its own"
    elif state.status == "revoked":
        again = "reinstated" in _possible(state)
        remedy = f"{'reinstate it, or ' if again else 'its text was purged: '}add it under another id"
    return LedgerError(
        f"a request is added once, got {what} for {state.id!r}, which {state.by} added at {state.added_at:%Y-%m-%d %H:%M} UTC and which is "
        f"{state.status}; {remedy}"
    )


def _possible(state: RequestState) -> list[Action]:
    """The actions that the state allows."""
    possible = [action for action, statuses in _NEEDS.items() if state.status in statuses]
    no_adapter, no_text = state.adapter is None, state.purged
    impossible: dict[Action, bool] = {
        "train": no_text,
        "stacked": no_adapter,
        "promoted": state.stack is None,
        "declined": no_adapter,
        "reinstated": no_adapter and no_text,
        "purged": state.purged,
    }
    return [action for action in possible if not impossible.get(action, False)]


def _refused(state: RequestState, action: Action) -> LedgerError:
    lacking = [*(["purged of its text"] if state.purged else []), *(["without an adapter"] if state.adapter is None else [])]
    found = ", ".join([state.status, *lacking])
    allowed = [_COMMANDS[possible] for possible in _possible(state) if possible in _COMMANDS]
    needed = " or ".join(_NEEDS[action])
    return LedgerError(
        f"`{_COMMANDS.get(action, action)}` needs a request that is {needed}{_NEEDS_TOO.get(action, '')}, got {state.id!r}, which is {found} "
        f"(entry {state.since}); allowed now: {', '.join(allowed) or 'nothing'}"
    )


def _check_details(state: RequestState, entry: LedgerEntry) -> None:
    """Refuse an entry that does not say what it was made about."""
    needed = {"trained": ("adapter",), "stacked": ("stack", "version")}.get(entry.action, ())
    missing = [name for name in needed if getattr(entry.details, name) is None]
    if missing:
        raise LedgerError(f"`{entry.action}` must say `{'`, `'.join(missing)}`, got {state.id!r} without; give the digests")


def _status_after(state: RequestState, entry: LedgerEntry) -> Status:
    match entry.action:
        case "train":
            return "training"
        case "trained" | "failed" | "revoked":
            return entry.action
        case "promoted":
            return "active"
        case "stacked":  # a second attempt at a request that was declined
            return "trained" if state.status == "failed" else state.status
        case "declined":
            return "failed" if state.status == "trained" else state.status
        case "reinstated":
            if state.adapter is None:
                return "pending"
            return "trained" if entry.details.stack is None else "active"
        case _:
            return state.status
