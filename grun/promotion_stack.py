"""Promotion of a stack: has it kept what every request was promised, the oldest as well as the newest?

    reject    a request is not forgotten enough, be it the new one or one that leaks again; or the stack as a whole does damage
    promote   otherwise: there is nothing to be better in, as a stack answers for other requests than the one before it

Bounds are those of a single adapter (:mod:`grun.promotion`), and hold for the stack as a whole: every request's own forgetting, the
utility that all of them leave together, the ordinary prompts that any of them touches.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from grun.config import PromotionConfig
from grun.evaluation.stack_report import MemberReport, StackReport
from grun.promotion import Decision, PromotionDecision

__all__ = ["StackPolicy"]


@dataclass(frozen=True)
class StackPolicy:
    """Decides by the bounds of a recipe."""

    config: PromotionConfig

    def decide(self, report: StackReport, *, served: Collection[str]) -> PromotionDecision:
        """Judge a stack by its report.

        Args:
            served: the requests of the stack that is served now; one of them that is not forgotten leaks again.
        """
        verdicts = [*self._forgetting(report, served), *self._damage(report), *self._certificates(report)]
        if breaches := tuple(reason for met, reason in verdicts if not met):
            return PromotionDecision(Decision.REJECT, breaches)
        return PromotionDecision(Decision.PROMOTE, tuple(reason for _met, reason in verdicts))

    def _forgetting(self, report: StackReport, served: Collection[str]) -> Iterator[tuple[bool, str]]:
        for member in report.members:
            yield self._forgotten(member, again=member.request_id in served)

    def _forgotten(self, member: MemberReport, *, again: bool) -> tuple[bool, str]:
        bound, value = self.config.max_forget_rouge, member.rouge_after
        if value is None:
            return (
                True,
                f"{member.request_id} could not be asked, as its text is purged; its adapter is the one that was judged before",
            )
        rule = f"{member.request_id}: forget_unseen/rouge_l_recall {{}} at most {bound:g} (promotion.max_forget_rouge), got {value:.6g}"
        if value <= bound:
            return True, rule.format("is")
        return False, rule.format("must be") + (": an older request leaks again" if again else "")

    def _damage(self, report: StackReport) -> Iterator[tuple[bool, str]]:
        least, utility = self.config.min_utility_ratio, report.utility_ratio
        met = utility is not None and utility >= least
        got = "none" if utility is None else f"{utility:.6g}"
        yield met, f"model_utility_ratio {_must(met)} at least {least:g} (promotion.min_utility_ratio), got {got}"
        most = self.config.max_false_open_rate
        met = report.false_open_rate <= most
        yield (
            met,
            f"gate/false_open_rate of all gates together {_must(met)} at most {most:g} (promotion.max_false_open_rate), got "
            f"{report.false_open_rate:.6g}",
        )

    def _certificates(self, report: StackReport) -> Iterator[tuple[bool, str]]:
        if not self.config.require_certificate:
            return
        for member in report.members:
            certificate = member.certificate
            if certificate is None or not certificate.holds:
                got = "none" if certificate is None else f"one that does not: {certificate.sentence}"
                yield (
                    False,
                    f"{member.request_id}: the utility certificate must be there and hold (promotion.require_certificate), got {got}",
                )
            else:
                yield True, f"{member.request_id} is certified: {certificate.sentence}"


def _must(met: bool) -> str:
    return "is" if met else "must be"
