"""One entry of the ledger: who did what for which request, when and why, with the digests of what it was done with.

Its digest is SHA-256 over the canonical JSON of all other fields, that of the entry before among them. Details that say nothing
are left out.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, NonNegativeFloat, ValidationError

from grun.certificate import Certificate
from grun.config.base import NAME_PATTERN, Config, explain
from grun.errors import LedgerError
from grun.reading import shown
from grun.requests import Source

__all__ = ["Action", "CertificateDetails", "Details", "LedgerEntry"]

Action = Literal["add", "train", "trained", "stacked", "promoted", "declined", "failed", "revoked", "reinstated", "purged"]
"""What can be done for a request: see :mod:`grun.ledger.state` for when."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal digits."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of things; beyond 4300 digits Python has no text for one, and no canonical JSON."""


class CertificateDetails(Config):
    """The utility certificate of an adapter, by its digest."""

    digest: Digest
    """SHA-256 of the certificate."""
    holds: bool
    """Whether anything is promised."""
    sentence: str
    """What is promised."""

    @classmethod
    def of(cls, certificate: Certificate) -> Self:
        """What an entry says of a certificate."""
        return cls(digest=certificate.digest, holds=certificate.holds, sentence=certificate.sentence)


class Details(Config):
    """What an entry was made about: digests and numbers, and never a word of what is to be forgotten."""

    forget: Source | None = None
    """The records to forget: place, count and digest."""
    data: dict[str, Digest] = Field(default_factory=dict)
    """Content digests of all sets that training used, by name."""
    counts: dict[str, Count] = Field(default_factory=dict)
    """How many records or other things, by name."""
    base: Digest | None = None
    """Digest of the base model."""
    adapter: Digest | None = None
    """Digest of the request's adapter."""
    members: tuple[str, ...] = ()
    """Requests of the stack, in its order."""
    stack: Digest | None = None
    """Digest of the stack."""
    model: str | None = None
    """Name of the registered model."""
    version: Annotated[Count, Field(ge=1)] | None = None
    """Version of the registered model that holds the stack."""
    run_id: str | None = None
    """MLflow run that has more to say."""
    certificate: CertificateDetails | None = None
    """What is promised about ordinary prompts."""
    evaluation: dict[str, float] = Field(default_factory=dict)
    """What was measured, by metric key."""
    seconds: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """What it took, by step."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate nested values.

        Raises:
            LedgerError: with the path, the rule and the value of everything that is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise LedgerError(str(explain(error, cls, where="`details`", what="part of a ledger entry"))) from None


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a moment that UTC has a name for") from None


class LedgerEntry(Config):
    """One entry of the ledger. Made by :meth:`make`, read by :meth:`parse`."""

    sequence: Annotated[Count, Field(ge=1)]
    """Its place in the chain, from 1."""
    at: Annotated[AwareDatetime, AfterValidator(_in_utc)]
    """When, in UTC, by the clock of whoever wrote it."""
    by: str = Field(min_length=1)
    """Who, as user@host."""
    action: Action
    """What was done."""
    request_id: str = Field(pattern=NAME_PATTERN)
    """For which request."""
    reason: str
    """Why; several reasons a line each."""
    details: Details
    """With what."""
    fence: Count
    """Number of the lease that it was written under, 0 without one; a lease that was taken over has a lower one and writes no more."""
    previous: Digest
    """Digest of the entry before; zeros for the first."""
    digest: Digest
    """SHA-256 over the canonical JSON of all the above."""

    @classmethod
    def make(cls, **fields: Any) -> Self:
        """Make an entry of all fields but its digest, and seal it.

        Raises:
            LedgerError: a field breaks its rule.
        """
        try:
            draft = cls.model_validate({**fields, "digest": "0" * 64})
        except ValidationError as error:
            raise LedgerError(str(explain(error, cls, where="the entry", what="ledger entry"))) from None
        return draft.model_copy(update={"digest": draft.content_digest})

    @property
    def content_digest(self) -> str:
        """What the digest has to be."""
        content = {name: value for name, value in self._content().items() if name != "digest"}
        return hashlib.sha256(_canonical(content).encode()).hexdigest()

    def to_json(self) -> str:
        """The entry as it is stored: canonical JSON, in one line."""
        return _canonical(self._content())

    def _content(self) -> dict[str, Any]:
        """All fields; of the details those that say something, so that one that is new some day changes no entry of today."""
        return self.model_dump(mode="json") | {"details": self.details.model_dump(mode="json", exclude_defaults=True)}

    @classmethod
    def parse(cls, text: str, *, where: str) -> Self:
        """Read an entry that was stored.

        Args:
            where: place of the text, for the message.

        Raises:
            LedgerError: it is no entry, or not as it was written; its digest is left to the chain.
        """
        try:
            entry = cls.model_validate_json(text)
        except ValidationError as error:
            fields = sorted({".".join(map(str, item["loc"])) or "JSON" for item in error.errors()})
            raise LedgerError(
                f"a ledger must hold entries, got something else in {where} (wrong: {shown(', '.join(fields))[1:-1]}); it was altered: "
                "restore it from an export or a backup of the registry, and find out who wrote there"
            ) from None
        if entry.to_json() != text:
            raise LedgerError(
                f"an entry must stand as it was written, got other characters in {where} than its fields make; it was altered: "
                "restore it from an export or a backup of the registry"
            )
        return entry


def _canonical(values: object) -> str:
    """One text for equal values: sorted keys, no spaces, ASCII."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
