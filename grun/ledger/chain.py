"""The chain: entries in order, each sealed with the digest of the one before, and the requests that they amount to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from grun.errors import LedgerError, near_miss
from grun.ledger.entry import Action, Details, LedgerEntry
from grun.ledger.state import RequestState, Status, next_state

__all__ = ["GENESIS", "Ledger"]

GENESIS = "0" * 64
"""What stands for the digest before the first entry."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """A verified chain. Made empty, by :meth:`read`, or from another by :meth:`append`."""

    entries: tuple[LedgerEntry, ...] = ()
    states: Mapping[str, RequestState] = field(default_factory=dict)
    """Every request by id, in the order in which they were added."""
    active: tuple[str, ...] = ()
    """Requests whose adapters are served, in the order of their stack: that in which they became active."""

    @classmethod
    def read(cls, entries: Iterable[LedgerEntry]) -> Self:
        """Verify a chain from its beginning.

        Raises:
            LedgerError: an entry was altered, swapped, dropped or inserted, or does what its request did not allow.
        """
        ledger = cls()
        for entry in entries:
            ledger = ledger.follow(entry)
        return ledger

    @property
    def head(self) -> str:
        """Digest of the last entry: whoever knows it can tell whether anything before it was changed."""
        return self.entries[-1].digest if self.entries else GENESIS

    @property
    def fence(self) -> int:
        """Number of the newest lease that anything was written under."""
        return max((entry.fence for entry in self.entries), default=0)

    def of(self, *statuses: Status) -> tuple[RequestState, ...]:
        """The requests in some statuses, in the order in which they were added."""
        return tuple(state for state in self.states.values() if state.status in statuses)

    def state(self, request_id: str) -> RequestState:
        """Find a request.

        Raises:
            LedgerError: it is not in the ledger; with the near miss.
        """
        if request_id not in self.states:
            raise LedgerError(
                f"a request must be in the ledger, got {request_id!r}{near_miss(request_id, self.states)}; known are "
                f"{', '.join(self.states) or 'none'}: add it first"
            )
        return self.states[request_id]

    def history(self, request_id: str) -> tuple[LedgerEntry, ...]:
        """The entries of a request, oldest first.

        Raises:
            LedgerError: it is not in the ledger.
        """
        state = self.state(request_id)
        return tuple(entry for entry in self.entries if entry.request_id == state.id)

    def repeats(self, action: Action, request_id: str, reason: str) -> LedgerEntry | None:
        """The last entry of a request where it says just this: then whoever says it again has been heard."""
        last = next((entry for entry in reversed(self.entries) if entry.request_id == request_id), None)
        return last if last is not None and (last.action, last.reason) == (action, reason) else None

    def append(
        self,
        action: Action,
        request_id: str,
        *,
        by: str,
        reason: str = "",
        details: Details | None = None,
        fence: int = 0,
        at: datetime | None = None,
    ) -> Self:
        """Return the ledger with one more entry.

        Args:
            fence: number of the lease that it is written under, if it is.
            at: when; now if None.

        Raises:
            LedgerError: the state of the request does not allow it, or the lease was taken over.
        """
        entry = LedgerEntry.make(
            sequence=len(self.entries) + 1,
            at=at or datetime.now(UTC),
            by=by,
            action=action,
            request_id=request_id,
            reason=reason,
            details=details or Details(),
            fence=fence,
            previous=self.head,
        )
        return self.follow(entry)

    def follow(self, entry: LedgerEntry) -> Self:
        """Return the ledger with an entry that was made for it.

        Raises:
            LedgerError: it was altered or does not come next, or its request does not allow it.
        """
        self._check_place(entry)
        if 0 < entry.fence < self.fence:
            raise LedgerError(
                f"only the newest lease may write, got {_name(entry)} under lease {entry.fence} while lease {self.fence} has written; "
                "another worker took over: let it finish, then run the command again"
            )
        before = self.states.get(entry.request_id)
        if entry.action == "add":
            self._check_new(entry)
        else:
            before = self.state(entry.request_id)
        after = next_state(before, entry)
        others = tuple(name for name in self.active if name != after.id)
        stays = after.id in self.active
        active = (
            self.active if stays and after.status == "active" else (*others, *([after.id] if after.status == "active" else []))
        )
        return type(self)((*self.entries, entry), {**self.states, after.id: after}, active)

    def lost_race(self, entry: LedgerEntry) -> bool:
        """Whether an entry was made for an earlier state of this ledger, and another one came first."""
        place = entry.sequence - 1
        if entry.digest != entry.content_digest or place >= len(self.entries):
            return False
        return entry.previous == self.entries[place].previous

    def check_continues(self, earlier: "Ledger") -> None:
        """Make sure that this ledger begins with an earlier copy of it.

        Raises:
            LedgerError: it is shorter, or an entry differs; with the first one and its fields.
        """
        for old, new in zip(earlier.entries, self.entries, strict=False):
            if old != new:
                fields = [name for name in LedgerEntry.model_fields if getattr(old, name) != getattr(new, name)]
                raise LedgerError(
                    f"a ledger must continue its earlier export, got another entry {old.sequence} (`{'`, `'.join(fields)}` differ); "
                    "one of the two was altered, or they are not of the same ledger"
                )
        if len(self.entries) < len(earlier.entries):
            raise LedgerError(
                f"a ledger must continue its earlier export, got {len(self.entries)} entries where the export has "
                f"{len(earlier.entries)}: {_name(earlier.entries[len(self.entries)])} and what follows was cut off, or the export is "
                "of another ledger"
            )

    def _check_place(self, entry: LedgerEntry) -> None:
        expected = {"digest": entry.content_digest, "sequence": len(self.entries) + 1, "previous": self.head}
        reasons = {
            "digest": "does not fit the entry's other fields",
            "sequence": f"must be {expected['sequence']} here",
            "previous": "is not the digest of the entry before",
        }
        wrong = [name for name, value in expected.items() if getattr(entry, name) != value]
        if wrong:
            why = " and ".join(f"`{name}` {reasons[name]}" for name in wrong)
            raise LedgerError(
                f"a ledger must be as it was written, got {_name(entry)} altered, swapped or out of place: {why}; restore it from an "
                "export or a backup of the registry, and find out who wrote there"
            )

    def _check_new(self, entry: LedgerEntry) -> None:
        """Refuse the records of a request that is there already under another id."""
        for state in self.states.values():
            asked = entry.details.forget
            if (
                asked is not None
                and state.id != entry.request_id
                and state.status != "revoked"
                and state.forget.digest == asked.digest
            ):
                raise LedgerError(
                    f"records are asked to be forgotten by one request, got {entry.request_id!r} with those of {state.id!r}, which is "
                    f"{state.status}; revoke that one first, or go on with it"
                )


def _name(entry: LedgerEntry) -> str:
    return f"entry {entry.sequence} (`{entry.action}` of {entry.request_id!r})"
