"""The report of a stack: what it does to every request that it answers for, and to everything else.

    opens_i     = ordinary prompts that open a gate of member i, every edit held back
    growth_i    = those of them that open no gate of a member before it
    false opens = sum_i growth_i, the prompts that open any gate: those that do not get the base's answer, bit for bit

Two bounds on the rate of false opens, for the prompts to come: Clopper-Pearson of the stack's own count; and the union of its
members' certificates, which promises sum_i alpha_i at confidence 1 - sum_i delta_i and rests on more records, if it says less.
"""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from grun import __version__
from grun.certificate import Certificate
from grun.config import CompositionConfig
from grun.config.base import Config
from grun.evaluation.gate_separation import clopper_pearson_upper
from grun.evaluation.report_file import ReportFile

__all__ = ["MemberReport", "StackReport", "growths"]

Share = Annotated[float, Field(ge=0, le=1)]


class MemberReport(Config):
    """One request of a stack."""

    request_id: str
    """The request."""
    adapter_digest: str
    """Digest of its adapter."""
    gate_threshold: Share | None
    """Its gate threshold; null for soft gates."""
    num_prompts: NonNegativeInt
    """Its questions in wordings that training never saw; none where its text was purged, and the three numbers below are null."""
    rouge_before: Share | None
    """Their mean ROUGE-L recall with the base alone."""
    rouge_after: Share | None
    """The same with the whole stack."""
    own_open_rate: Share | None
    """Share of them that open a gate of this request."""
    opens: NonNegativeInt
    """Ordinary prompts that open a gate of this request."""
    growth: NonNegativeInt
    """Those of them that open no gate of a request before it."""
    certificate: Certificate | None
    """What its adapter promises about ordinary prompts."""


class StackReport(ReportFile):
    """What a stack was measured to do."""

    called: ClassVar[str] = "a report of a stack"

    schema_version: Literal[1] = 1
    """Layout of this file."""
    created_by: str = f"grun {__version__}"
    """Version of the code."""
    stack_digest: str
    """Digest of the stack."""
    base_digest: str
    """Digest of the base model's weights."""
    composition: CompositionConfig
    """How the adapters act together."""
    part: Literal["all", "validation", "test"]
    """Which ordinary and utility rows were scored; the requests' own are scored whole."""
    members: tuple[MemberReport, ...] = Field(min_length=1)
    """The requests, in the order of the stack."""
    utility_ratio: float | None
    """Model utility as a share of the base's; null where there are no utility rows."""
    num_utility: NonNegativeInt
    """Rows behind it."""
    num_ordinary: PositiveInt
    """Ordinary prompts, which training never saw."""
    ordinary_digest: str
    """SHA-256 of the set of ordinary prompts."""

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests, in order."""
        return tuple(member.request_id for member in self.members)

    @property
    def num_open(self) -> int:
        """Ordinary prompts that open a gate of any request."""
        return sum(member.growth for member in self.members)

    @property
    def false_open_rate(self) -> float:
        """Share of the ordinary prompts that open a gate of any request."""
        return self.num_open / self.num_ordinary

    @property
    def false_open_upper95(self) -> float:
        """Upper bound of that share at confidence 95 %."""
        return clopper_pearson_upper(self.num_open, self.num_ordinary)

    @property
    def union(self) -> tuple[float, float] | None:
        """(share, confidence) that the members' certificates promise together; None where one is missing or does not hold."""
        certificates = [member.certificate for member in self.members if member.certificate and member.certificate.holds]
        if len(certificates) < len(self.members):
            return None
        return min(1.0, sum(c.alpha for c in certificates)), max(0.0, 1 - sum(c.delta for c in certificates))

    @property
    def union_sentence(self) -> str:
        """What the certificates promise together, in one sentence."""
        if self.union is None:
            without = [m.request_id for m in self.members if not (m.certificate and m.certificate.holds)]
            return f"No promise for the whole stack: {', '.join(without)} without a certificate that holds."
        share, confidence = self.union
        if len(self.members) == 1 and (only := self.members[0].certificate) is not None:
            return only.sentence
        if confidence == 0:
            return f"No promise for the whole stack: {len(self.members)} certificates may err together, each with its own probability."
        return f"At most {share:.4g} of ordinary prompts are touched by any of {len(self.members)} adapters (confidence {confidence:.4g})."

    def metrics(self) -> dict[str, float]:
        """The numbers by metric key, of the whole stack and of each request; what is not known is left out."""
        judged = [m for m in self.members if m.rouge_after is not None]
        values = {
            "forget_unseen/rouge_l_recall_most": max((m.rouge_after for m in judged if m.rouge_after is not None), default=None),
            "model_utility_ratio": self.utility_ratio,
            "gate/false_open_rate": self.false_open_rate,
            "gate/false_open_rate_upper95": self.false_open_upper95,
            "stack/num_requests": float(len(self.members)),
        }
        for member in self.members:
            values |= {
                f"{member.request_id}/forget_unseen/rouge_l_recall": member.rouge_after,
                f"{member.request_id}/gate/forget_open_rate": member.own_open_rate,
                f"{member.request_id}/gate/false_open_rate": member.opens / self.num_ordinary,
            }
        return {name: value for name, value in values.items() if value is not None}

    def rows(self) -> dict[str, str]:
        """The report as lines of a summary: each request, then the stack."""
        return {
            **{member.request_id: _member_line(member, self.num_ordinary) for member in self.members},
            "utility": "not known"
            if self.utility_ratio is None
            else f"{self.utility_ratio:.4f} of the base's ({self.num_utility} rows)",
            "ordinary prompts that open a gate": (
                f"{self.num_open} of {self.num_ordinary} (at most {self.false_open_upper95:.4f} at confidence 0.95)"
            ),
            "certificates together": self.union_sentence,
        }


def _member_line(member: MemberReport, num_ordinary: int) -> str:
    opens = f"opens for {member.opens} of {num_ordinary} ordinary prompts, {member.growth} of them new"
    if member.rouge_after is None:
        return f"text purged, so not asked; {opens}"
    assert member.rouge_before is not None
    assert member.own_open_rate is not None
    return (
        f"ROUGE-L recall {member.rouge_before:.3f} -> {member.rouge_after:.3f} ({member.num_prompts} prompts, {member.own_open_rate:.0%} open "
        f"its gates); {opens}"
    )


def growths(opened: Iterable[Iterable[bool]]) -> tuple[int, ...]:
    """How many prompts each member opens that none before it does.

    Args:
        opened: for each prompt, whether it opens a gate of each member, in order.
    """
    rows = [list(row) for row in opened]
    width = len(rows[0]) if rows else 0
    return tuple(sum(row[index] and not any(row[:index]) for row in rows) for index in range(width))
