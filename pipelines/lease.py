"""A lease on the promotion of one registered model, kept in the registry itself.

The lock is a registered model named `lock.<model>`, which MLflow creates at most once; its tags say who holds it and
until when. A promoter that died leaves it behind. An expired lock is moved aside by renaming it after its own token:
of several that try, one succeeds, and one that read the old lock cannot take away the new one. What was moved aside
stays, as the trace of a promoter that did not end.

Expiry compares the clocks of the promoters' machines, so leases should last minutes, not seconds.
"""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from grun.errors import PromotionBusyError, PromotionError, TrackingError
from pipelines.mlflow_store import Store

__all__ = ["Lease", "check_lease", "hold_lease"]

_ATTEMPTS = 20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to move the champion of one model, until a time."""

    model_name: str
    owner: str
    token: str
    expires_at: datetime

    @property
    def lock_name(self) -> str:
        """Name of the registered model that is the lock."""
        return f"lock.{self.model_name}"

    @property
    def expired(self) -> bool:
        """Whether others may take over."""
        return datetime.now(UTC) >= self.expires_at


@contextmanager
def hold_lease(store: Store, model_name: str, owner: str, seconds: float) -> Iterator[Lease]:
    """Hold the lease of a model for the length of a `with` block.

    Args:
        owner: Who asks, as others are to read it.
        seconds: After this time others may take over.

    Raises:
        PromotionBusyError: somebody else holds it.
    """
    lease = Lease(model_name, owner, uuid.uuid4().hex, datetime.now(UTC) + timedelta(seconds=seconds))
    holder = _acquire(store, lease)
    if holder != lease:
        raise PromotionBusyError(
            f"one promoter at a time may work on {model_name}, got {owner!r} while {holder.owner!r} holds its lock until "
            f"{holder.expires_at:%Y-%m-%d %H:%M:%S} UTC; wait for them, then judge the candidate anew"
        )
    try:
        yield lease
    finally:
        try:
            _release(store, lease)
        except TrackingError as error:
            # What was done under the lease is done; the lock ends by itself.
            _logger.warning(
                "the promotion lock of %s could not be released and ends at %s: %s", model_name, lease.expires_at, error
            )


def check_lease(store: Store, lease: Lease) -> None:
    """Make sure that a lease is still held.

    Raises:
        PromotionError: it has expired or was taken over.
    """
    holder = _holder(store, lease)
    if holder != lease or lease.expired:
        raise PromotionError(
            f"moving an alias of {lease.model_name} needs its promotion lock, got one that {lease.owner!r} lost at "
            f"{lease.expires_at:%Y-%m-%d %H:%M:%S} UTC; ask for it again with a longer lease"
        )


def _acquire(store: Store, lease: Lease) -> Lease:
    """Try to take the lock, moving an expired one aside; return whoever holds it then."""
    for _ in range(_ATTEMPTS):
        if _create(store, lease):
            return lease
        holder = _holder(store, lease)
        if holder is None:
            continue  # it went between the two calls
        if not holder.expired:
            return holder
        _move_aside(store, holder)
    raise PromotionBusyError(
        f"the promotion lock of {lease.model_name} must come free or have a holder, got neither in {_ATTEMPTS} attempts; "
        f"try again, and if that does not help delete the registered model `{lease.lock_name}`"
    )


def _create(store: Store, lease: Lease) -> bool:
    from mlflow.exceptions import MlflowException

    tags = {"owner": lease.owner, "token": lease.token, "expires_at": lease.expires_at.isoformat()}
    with store.calling("take the promotion lock"):
        try:
            store.client.create_registered_model(lease.lock_name, tags=tags)
        except MlflowException as error:
            # The second is how MLflow reports a lock that was there, and released while it composed its refusal.
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
            return False
    return True


def _holder(store: Store, lease: Lease) -> Lease | None:
    from mlflow.exceptions import MlflowException

    with store.calling("read the promotion lock"):
        try:
            tags = store.client.get_registered_model(lease.lock_name).tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
    if tags.keys() < {"owner", "token", "expires_at"}:  # renamed between MLflow's reading of the model and of its tags
        return None
    return Lease(lease.model_name, tags["owner"], tags["token"], datetime.fromisoformat(tags["expires_at"]))


def _move_aside(store: Store, stale: Lease) -> None:
    from mlflow.exceptions import MlflowException

    with store.calling("take over an expired promotion lock"):
        try:
            store.client.rename_registered_model(stale.lock_name, f"{stale.lock_name}.expired.{stale.token}")
        except MlflowException:
            # MLflow has several words for a model that somebody else renamed first; the lock itself has the last one.
            if _holder(store, stale) == stale:
                raise
            return
    _logger.warning("took over the promotion lock of %s, which %s left behind", stale.model_name, stale.owner)


def _release(store: Store, lease: Lease) -> None:
    # Nobody may touch a lock before it expires, so between the check and the deletion it stays ours.
    if not lease.expired and _holder(store, lease) == lease:
        with store.calling("release the promotion lock"):
            store.client.delete_registered_model(lease.lock_name)
