"""The policy of stacks: every request is judged again, and each bound can refuse alone."""

from typing import Any

import pytest

from grun.config import PromotionConfig
from grun.evaluation.stack_report import MemberReport, StackReport
from grun.promotion import Decision
from grun.promotion_stack import StackPolicy
from tests.evaluation.example_stack import certificate, member, stack_report

POLICY = StackPolicy(PromotionConfig())


def test_a_stack_that_keeps_every_bound_is_promoted_with_each_of_them_named() -> None:
    decision = POLICY.decide(stack_report(), served=["r1", "r2"])
    assert decision.decision is Decision.PROMOTE
    for said in (
        "r1: forget_unseen",
        "r2: forget_unseen",
        "r3: forget_unseen",
        "model_utility_ratio is",
        "gate/false_open_rate of all",
    ):
        assert sum(reason.startswith(said) for reason in decision.reasons) == 1
    assert sum("is certified" in reason for reason in decision.reasons) == 3


BAD: dict[str, tuple[StackReport, str]] = {
    "new": (stack_report(member("r1"), member("r3", rouge_after=0.151)), "r3: forget_unseen/rouge_l_recall must be at most 0.15"),
    "utility": (
        stack_report(utility_ratio=0.979),
        "model_utility_ratio must be at least 0.98 (promotion.min_utility_ratio), got 0.979",
    ),
    "no utility": (
        stack_report(utility_ratio=None),
        "model_utility_ratio must be at least 0.98 (promotion.min_utility_ratio), got none",
    ),
    "false opens": (
        stack_report(member("r1", opens=9, growth=9), member("r2", opens=8, growth=7)),
        "gate/false_open_rate of all gates together must be at most 0.05",
    ),
    "certificate": (stack_report(member("r1", certificate=None)), "r1: the utility certificate must be there and hold"),
    "certificate that does not hold": (
        stack_report(member("r1", certificate=certificate(num_open=1))),
        "r1: the utility certificate must be there and hold (promotion.require_certificate), got one that does not",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_each_bound_refuses_alone(case: str) -> None:
    report, reason = BAD[case]
    decision = POLICY.decide(report, served=["r1"])
    assert decision.decision is Decision.REJECT
    [said] = decision.reasons
    assert said.startswith(reason)
    assert "leaks again" not in said


def test_at_the_bounds_it_is_still_promoted() -> None:
    report = stack_report(member("r1", rouge_after=0.15, opens=9, growth=9), member("r2", opens=8, growth=6), utility_ratio=0.98)
    assert report.false_open_rate == 0.05
    assert POLICY.decide(report, served=[]).decision is Decision.PROMOTE


def test_an_older_request_that_leaks_again_refuses_the_stack_and_is_named() -> None:
    report = stack_report(member("r1", rouge_after=0.4), member("r2"), member("r3", rouge_after=0.5))
    decision = POLICY.decide(report, served=["r1", "r2"])
    assert decision.decision is Decision.REJECT
    older, new = decision.reasons
    assert older.startswith("r1:")
    assert older.endswith("got 0.4: an older request leaks again")
    assert new.startswith("r3:")
    assert new.endswith("got 0.5")


def test_what_cannot_be_asked_any_more_does_not_refuse() -> None:
    gone: dict[str, Any] = {"num_prompts": 0, "rouge_before": None, "rouge_after": None, "own_open_rate": None}
    purged: MemberReport = member("r1", **gone)
    decision = POLICY.decide(stack_report(purged, member("r2")), served=["r1"])
    assert decision.decision is Decision.PROMOTE
    assert any("r1 could not be asked" in reason for reason in decision.reasons)


def test_certificates_may_be_done_without() -> None:
    policy = StackPolicy(PromotionConfig(require_certificate=False))
    assert policy.decide(stack_report(member("r1", certificate=None)), served=[]).decision is Decision.PROMOTE
