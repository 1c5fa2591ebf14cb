"""A lease on one registered model, kept in the registry itself: on moving its champion, or on working through a ledger.

The lock is a registered model named `lock.<model>`, which MLflow creates at most once; its tags say who holds it and
until when. A holder that died leaves it behind. An expired lock is moved aside by renaming it after its own token:
of several that try, one succeeds, and one that read the old lock cannot take away the new one. What was moved aside
stays, as the trace of a holder that did not end.

A process that was killed on this very machine is known to be gone, and is not waited for. Every lease has a number above
those before it, so that a record can tell a holder that lost it without noticing.
Expiry compares the clocks of the holders' machines, so leases should last minutes, not seconds.
"""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from grun.errors import GrunError, LedgerBusyError, LedgerError, PromotionBusyError, PromotionError, TrackingError
from pipelines.mlflow_store import Store
from pipelines.owner import is_gone

__all__ = ["LEDGER", "PROMOTION", "Lease", "Purpose", "check_lease", "hold_lease"]

_ATTEMPTS = 20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a lease is for: the words and errors in which its holders are told about each other."""

    lock: str
    """What the lock is called."""
    holder: str
    """What somebody who holds it is called."""
    needed_for: str
    """What must not be done without it, before the model's name."""
    remedy: str
    """What somebody who is kept out can do."""
    busy: type[GrunError]
    """Raised where somebody else holds it."""
    lost: type[GrunError]
    """Raised where it is held no longer."""


PROMOTION = Purpose(
    lock="promotion lock",
    holder="promoter",
    needed_for="moving an alias of",
    remedy="wait for them, then judge the candidate anew",
    busy=PromotionBusyError,
    lost=PromotionError,
)
LEDGER = Purpose(
    lock="ledger lock",
    holder="worker",
    needed_for="working through",
    remedy="wait for them; what they finish is in the ledger",
    busy=LedgerBusyError,
    lost=LedgerError,
)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do what a purpose says with one model, until a time."""

    model_name: str
    owner: str
    token: str
    expires_at: datetime
    number: int = 1
    """Above that of every lease before it on the same model."""

    @property
    def lock_name(self) -> str:
        """Name of the registered model that is the lock."""
        return f"lock.{self.model_name}"

    @property
    def expired(self) -> bool:
        """Whether others may take over."""
        return datetime.now(UTC) >= self.expires_at


@contextmanager
def hold_lease(
    store: Store, model_name: str, owner: str, seconds: float, *, purpose: Purpose = PROMOTION, above: int = 0
) -> Iterator[Lease]:
    """Hold the lease of a model for the length of a `with` block.

    Args:
        owner: Who asks, as others are to read it.
        seconds: After this time others may take over.
        above: The highest number of a lease that is known to have been.

    Raises:
        GrunError: somebody else holds it; the error that the purpose names for that.
    """
    wanted = Lease(model_name, owner, uuid.uuid4().hex, datetime.now(UTC) + timedelta(seconds=seconds), above + 1)
    lease = _acquire(store, wanted, purpose)
    if lease.token != wanted.token:
        raise purpose.busy(
            f"one {purpose.holder} at a time may work on {model_name}, got {owner!r} while {lease.owner!r} holds its lock until "
            f"{lease.expires_at:%Y-%m-%d %H:%M:%S} UTC; {purpose.remedy}"
        )
    try:
        yield lease
    except BaseException:
        with store.patience.hasty():  # what went wrong is the news
            _let_go(store, lease, purpose)
        raise
    _let_go(store, lease, purpose)


def check_lease(store: Store, lease: Lease, *, purpose: Purpose = PROMOTION) -> None:
    """Make sure that a lease is still held.

    Raises:
        GrunError: it has expired or was taken over; the error that the purpose names for that.
    """
    holder = _holder(store, lease, purpose)
    if holder != lease or lease.expired:
        raise purpose.lost(
            f"{purpose.needed_for} {lease.model_name} needs its {purpose.lock}, got one that {lease.owner!r} lost at "
            f"{lease.expires_at:%Y-%m-%d %H:%M:%S} UTC; ask for it again with a longer lease"
        )


def _acquire(store: Store, lease: Lease, purpose: Purpose) -> Lease:
    """Try to take the lock, moving aside one that expired or whose process is no more; return the lease of whoever holds it then."""
    for _ in range(_ATTEMPTS):
        if _create(store, lease, purpose):
            return lease
        holder = _holder(store, lease, purpose)
        if holder is None:
            continue  # it went between the two calls
        if not holder.expired and not is_gone(holder.owner):
            return holder
        _move_aside(store, holder, purpose)
        lease = replace(lease, number=max(lease.number, holder.number + 1))
    raise purpose.busy(
        f"the {purpose.lock} of {lease.model_name} must come free or have a holder, got neither in {_ATTEMPTS} attempts; "
        f"try again, and if that does not help delete the registered model `{lease.lock_name}`"
    )


def _create(store: Store, lease: Lease, purpose: Purpose) -> bool:
    from mlflow.exceptions import MlflowException

    tags = {
        "owner": lease.owner,
        "token": lease.token,
        "expires_at": lease.expires_at.isoformat(),
        "number": str(lease.number),
    }
    with store.calling(f"take the {purpose.lock}"):
        try:
            store.client.create_registered_model(lease.lock_name, tags=tags)
        except MlflowException as error:
            # The second is how MLflow reports a lock that was there, and released while it composed its refusal.
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
            return False
    return True


def _holder(store: Store, lease: Lease, purpose: Purpose) -> Lease | None:
    from mlflow.exceptions import MlflowException

    with store.calling(f"read the {purpose.lock}"):
        try:
            tags = store.client.get_registered_model(lease.lock_name).tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
    if not tags.keys() >= {
        "owner",
        "token",
        "expires_at",
        "number",
    }:  # renamed between MLflow's reading of the model and of its tags
        return None
    expires_at = datetime.fromisoformat(tags["expires_at"])
    return Lease(lease.model_name, tags["owner"], tags["token"], expires_at, int(tags["number"]))


def _move_aside(store: Store, stale: Lease, purpose: Purpose) -> None:
    from mlflow.exceptions import MlflowException

    with store.calling(f"take over an expired {purpose.lock}"):
        try:
            store.client.rename_registered_model(stale.lock_name, f"{stale.lock_name}.expired.{stale.token}")
        except MlflowException:
            # MLflow has several words for a model that somebody else renamed first; the lock itself has the last one.
            if _holder(store, stale, purpose) == stale:
                raise
            return
    _logger.warning("took over the %s of %s, which %s left behind", purpose.lock, stale.model_name, stale.owner)


def _let_go(store: Store, lease: Lease, purpose: Purpose) -> None:
    try:
        _release(store, lease, purpose)
    except TrackingError as error:
        # What was done under the lease is done; the lock ends by itself.
        _logger.warning(
            "the %s of %s could not be released and ends at %s: %s", purpose.lock, lease.model_name, lease.expires_at, error
        )


def _release(store: Store, lease: Lease, purpose: Purpose) -> None:
    from mlflow.exceptions import MlflowException

    # Nobody may touch a lock before it expires, so between the check and the deletion it stays ours.
    if not lease.expired and _holder(store, lease, purpose) == lease:
        with store.calling(f"release the {purpose.lock}"):
            try:
                store.client.delete_registered_model(lease.lock_name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # released, and the answer was lost
                    raise
