"""The record of who moved a champion and why: what goes into it, and what is read from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

__all__ = ["Action", "PromotionRecord", "Verdict"]

Action = Literal["promote", "rollback", "decline", "retire"]
"""What was done: `retire` takes the championship from a version and gives it to none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a version is moved or not, as it goes on record."""

    decision: str
    """The policy's word, for instance `promote`, `keep` or `reject`."""
    reasons: tuple[str, ...] = ()
    """Its reasons, a line each."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else belongs into the JSON record."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Pages that belong to it, by artifact name."""


@dataclass(frozen=True, slots=True)
class PromotionRecord:
    """One entry of the record."""

    run_id: str
    status: str
    """Status of the run: FINISHED, or FAILED or RUNNING for an attempt that did not end."""
    action: str
    version_from: int | None
    """The champion before."""
    version_to: int | None
    """The version that was promoted, rolled back to, or declined; None where the champion was retired."""
    decision: str
    reasons: tuple[str, ...]
    by: str
    at: datetime
