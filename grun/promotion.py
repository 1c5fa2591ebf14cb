"""Promotion: has a candidate earned the place of the champion?

    reject    not forgotten enough, or damaged, or a number that decides is missing
    keep      good, but worse than the incumbent beyond the tolerance, or better in nothing
    promote   good, and there is no incumbent, or one that breaks the policy itself, or one that it improves on

The two sides are judged apart: no amount of forgetting pays for damage, nor the other way round. A utility certificate that
holds is asked for beside them: what is measured on these rows is then bounded for the prompts to come.
"""

from dataclasses import dataclass
from enum import StrEnum

from grun.config import PromotionConfig
from grun.errors import PromotionError
from grun.evaluation.report import EvalReport
from grun.evaluation.verdict import AUROC, FALSE_OPEN, FORGETTING, UTILITY

__all__ = ["Decision", "PromotionDecision", "PromotionPolicy"]


class Decision(StrEnum):
    """What becomes of a candidate."""

    PROMOTE = "promote"
    KEEP = "keep"
    REJECT = "reject"


@dataclass(frozen=True)
class PromotionDecision:
    """A decision and everything that led to it."""

    decision: Decision
    reasons: tuple[str, ...]
    """Each states metric, value and bound."""

    def rows(self) -> dict[str, str]:
        """The reasons as lines of a summary."""
        return {f"reason {number}": reason for number, reason in enumerate(self.reasons, start=1)}


@dataclass(frozen=True)
class _Criterion:
    """A metric with its bound; lower is better, or higher."""

    metric: str
    option: str
    """The bound's field in :class:`PromotionConfig`."""
    lower: bool
    tolerated: bool = False
    """Whether a candidate that is a little worse than the incumbent here may still replace it."""

    def met(self, value: float, bound: float) -> bool:
        return value <= bound if self.lower else value >= bound

    def gain(self, value: float, incumbent: float) -> float:
        """By how much the value is better than the incumbent's."""
        return incumbent - value if self.lower else value - incumbent


_CRITERIA = (
    _Criterion(FORGETTING, "max_forget_rouge", lower=True, tolerated=True),
    _Criterion(UTILITY, "min_utility_ratio", lower=False, tolerated=True),
    _Criterion(AUROC, "min_gate_auroc", lower=False),
    _Criterion(FALSE_OPEN, "max_false_open_rate", lower=True),
)


@dataclass(frozen=True)
class PromotionPolicy:
    """Decides by the bounds of a recipe."""

    config: PromotionConfig

    def decide(self, report: EvalReport, incumbent: EvalReport | None) -> PromotionDecision:
        """Judge a candidate by its report, and against the incumbent's.

        Raises:
            PromotionError: the two were not judged on the same base and rows.
        """
        if breaches := self._breaches(report):
            return PromotionDecision(Decision.REJECT, breaches)
        passed = tuple(self._state(criterion, report.value(criterion.metric)) for criterion in _CRITERIA)
        if report.certificate is not None and report.certificate.holds:
            passed = (*passed, f"certified: {report.certificate.sentence}")
        if incumbent is None:
            return PromotionDecision(Decision.PROMOTE, (*passed, "there is no incumbent"))
        _check_comparable(report, incumbent)
        if breaches := self._breaches(incumbent):
            return PromotionDecision(Decision.PROMOTE, (*passed, *(f"of the incumbent, {breach}" for breach in breaches)))
        return self._compare(report, incumbent, passed)

    def _state(self, criterion: _Criterion, value: float) -> str:
        bound = getattr(self.config, criterion.option)
        word = "at most" if criterion.lower else "at least"
        verdict = "is" if criterion.met(value, bound) else "must be"
        return f"{criterion.metric} {verdict} {word} {bound:g} (promotion.{criterion.option}), got {value:.6g}"

    def _breaches(self, report: EvalReport) -> tuple[str, ...]:
        """Return what a report fails by; a number that is missing or null is a failure too."""
        reasons = []
        for criterion in _CRITERIA:
            value = report[criterion.metric].value if criterion.metric in report else None
            bound = getattr(self.config, criterion.option)
            if value is None:
                reasons.append(
                    f"{criterion.metric} must be known to hold its bound {bound:g} (promotion.{criterion.option}), got none"
                )
            elif not criterion.met(value, bound):
                reasons.append(self._state(criterion, value))
        if self.config.require_certificate and not (report.certificate is not None and report.certificate.holds):
            got = "none" if report.certificate is None else f"one that does not: {report.certificate.sentence}"
            reasons.append(f"the utility certificate must be there and hold (promotion.require_certificate), got {got}")
        return tuple(reasons)

    def _compare(self, report: EvalReport, incumbent: EvalReport, passed: tuple[str, ...]) -> PromotionDecision:
        tolerance = self.config.incumbent_tolerance
        worse, better = [], []
        for criterion in _CRITERIA:
            value, theirs = report.value(criterion.metric), incumbent.value(criterion.metric)
            gain = criterion.gain(value, theirs)
            compared = f"{criterion.metric} is {value:.6g} against the incumbent's {theirs:.6g}"
            if criterion.tolerated and gain < -tolerance:
                worse.append(f"{compared}, worse by more than {tolerance:g} (promotion.incumbent_tolerance)")
            elif gain > 0:
                better.append(f"{compared}, better by {gain:.3g}")
        if worse:
            return PromotionDecision(Decision.KEEP, tuple(worse))
        if not better:
            equal = ", ".join(f"{criterion.metric} {report.value(criterion.metric):.6g}" for criterion in _CRITERIA)
            return PromotionDecision(Decision.KEEP, (f"the candidate is better than the incumbent in nothing: {equal}",))
        return PromotionDecision(Decision.PROMOTE, (*passed, *better))


def _check_comparable(report: EvalReport, incumbent: EvalReport) -> None:
    """Numbers of different rows, or of different bases, say nothing about which adapter is better."""
    shared = [criterion.metric for criterion in _CRITERIA if criterion.metric in incumbent]
    mine, theirs = ((r.base_digest, r.part, *(r[metric].digest for metric in shared)) for r in (report, incumbent))
    if mine != theirs or report.base_variant != incumbent.base_variant:
        raise PromotionError(
            f"candidate and incumbent must be judged on the same base and rows, got base {mine[0][:12]} and part "
            f"{mine[1]!r} against base {theirs[0][:12]} and part {theirs[1]!r}, or sets of other digests; evaluate both anew"
        )
