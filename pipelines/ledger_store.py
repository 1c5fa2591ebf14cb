"""The ledger of requests in the MLflow registry, on a database and on a server alike.

A ledger is a registered model of its own, `ledger.<name>`. An entry is a model version, whose tag `entry`, set by the call that
creates it, holds the entry as JSON. The registry numbers versions one after the other, so of two writers that saw the same
ledger one comes first, and the other's entry, whose `previous` is not the digest of the last one, is void for every reader;
its writer sees that, and tries again on what the ledger is by then. So appending needs no lock; the lease of :meth:`hold` only
keeps two workers from doing the same work.

Whoever may write to the registry can alter tags and delete versions. Readers verify the whole chain and the numbers of the
versions; only a ledger cut off at its end, or written anew from some entry on, takes an earlier export to find out.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from grun.config import Recipe
from grun.errors import LedgerError
from grun.ledger import GENESIS, Action, Details, Ledger, LedgerEntry
from pipelines.lease import LEDGER, Lease, check_lease, hold_lease
from pipelines.owner import owner
from pipelines.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["LedgerStore", "StoredLedger"]

_ENTRY_TAG = "entry"
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class StoredLedger:
    """What the registry holds."""

    ledger: Ledger
    void: tuple[LedgerEntry, ...]
    """Entries whose writers came too late; they count for nothing."""


class LedgerStore:
    """One ledger in the store of a tracker.

    Args:
        name: Name of the ledger.
    """

    def __init__(self, tracker: Tracker, name: str, lease_seconds: float) -> None:
        self.tracker = tracker
        self._client = tracker.client
        self._calling = tracker.calling
        self._lease_seconds = lease_seconds
        self.model_name = f"ledger.{name}"

    @classmethod
    def open(cls, recipe: Recipe) -> Self:
        """Open the ledger that a recipe names, in its tracking store; one that is not there is empty.

        Raises:
            TrackingError: the store cannot be reached.
        """
        tracker = Tracker.open(recipe.tracking, recipe.output)
        return cls(tracker, recipe.ledger.name, recipe.ledger.lease_seconds)

    def read(self) -> Ledger:
        """Read and verify the ledger.

        Raises:
            LedgerError: it is not as it was written; with the entry and the field.
            TrackingError: the store cannot be reached.
        """
        return self.read_stored().ledger

    def read_stored(self) -> StoredLedger:
        """Read and verify the ledger, and say what in the registry counts for nothing.

        Raises:
            LedgerError: it is not as it was written; with the entry and the field.
            TrackingError: the store cannot be reached.
        """
        ledger, void = Ledger(), []
        for number, version in enumerate(self._versions(), start=1):
            if int(version.version) != number:
                raise LedgerError(
                    f"the versions of {self.model_name} must be numbered without a gap, got {version.version} where {number} should be; "
                    "an entry was deleted: restore it from an export or a backup of the registry, and find out who wrote there"
                )
            entry = LedgerEntry.parse(version.tags.get(_ENTRY_TAG, ""), where=f"version {number} of {self.model_name}")
            if ledger.lost_race(entry):
                void.append(entry)
            else:
                ledger = ledger.follow(entry)
        return StoredLedger(ledger, tuple(void))

    def append(
        self,
        action: Action,
        request_id: str,
        *,
        reason: str = "",
        details: Details | Mapping[str, Any] | None = None,
        by: str | None = None,
        lease: Lease | None = None,
        seen: Ledger | None = None,
    ) -> LedgerEntry:
        """Write an entry, checked against what the ledger is when it gets there.

        Args:
            by: Who; None for the user of this process.
            lease: What :meth:`hold` gave, for work that one worker at a time may do: once it is lost, nothing is written.
            seen: The ledger that the entry was decided on, where it must not have grown since.

        Raises:
            LedgerError: the state of the request does not allow it, the lease is lost, or others have written since.
            TrackingError: the store cannot be reached.
        """
        checked = details if isinstance(details, Details) else Details.parse(details or {})
        for _ in range(_ATTEMPTS):
            if lease is not None:
                check_lease(self.tracker.store, lease, purpose=LEDGER)
            ledger = self.read()
            if seen is not None and ledger.head != seen.head:
                raise LedgerError(
                    f"`{action}` of {request_id!r} must come right after what it was decided on, entry {len(seen.entries)}, got a ledger of "
                    f"{len(ledger.entries)} entries; run the command again, it decides anew"
                )
            fence = 0 if lease is None else lease.number
            entry = ledger.append(action, request_id, by=by or owner(), reason=reason, details=checked, fence=fence).entries[-1]
            self._create(entry)
            if any(written.digest == entry.digest for written in self.read().entries):
                return entry
        raise LedgerError(
            f"an entry must find its place in {self.model_name}, got overtaken by other writers {_ATTEMPTS} times; run the command again"
        )

    def hold(self, owner: str) -> AbstractContextManager[Lease]:
        """Hold the right to work through this ledger for the length of a `with` block.

        Args:
            owner: Who asks, as others are to read it.

        Raises:
            LedgerBusyError: somebody else holds it; names them.
        """
        return hold_lease(
            self.tracker.store, self.model_name, owner, self._lease_seconds, purpose=LEDGER, above=self.read().fence
        )

    def _versions(self) -> Iterator["ModelVersion"]:
        token = None
        while True:
            with self._calling("read the ledger"):
                page = self._client.search_model_versions(
                    f"name = '{self.model_name}'", order_by=["version_number ASC"], page_token=token
                )
            yield from page
            token = page.token
            if not token:
                return

    @cached_property
    def _run_id(self) -> str:
        """The run that versions name as their source: a server asks for one, though there is nothing to be found there."""
        with self.tracker.run(self.model_name, tags={"kind": "ledger"}, key=self.model_name) as run_id:
            return run_id

    def _create(self, entry: LedgerEntry) -> None:
        from mlflow.exceptions import MlflowException

        run_id = self._run_id
        with self._calling("append to the ledger"):
            if entry.previous == GENESIS:
                try:
                    self._client.create_registered_model(self.model_name, tags={"kind": "ledger"})
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
            source, tags = f"runs:/{run_id}/ledger", {_ENTRY_TAG: entry.to_json()}
            self._client.create_model_version(self.model_name, source, run_id, tags=tags)
