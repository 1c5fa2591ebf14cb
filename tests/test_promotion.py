"""The promotion policy: two-sided, never silent, fair to the incumbent."""

from collections.abc import Mapping

import pytest

from grun.certificate import Certificate, OpenCount
from grun.config import PromotionConfig
from grun.errors import PromotionError
from grun.evaluation.report import EvalReport, Metric
from grun.promotion import Decision, PromotionPolicy

GOOD = {
    "forget_unseen/rouge_l_recall": 0.10,
    "model_utility_ratio": 0.99,
    "gate/auroc": 0.995,
    "gate/false_open_rate": 0.02,
}
POLICY = PromotionPolicy(PromotionConfig())


def certificate_with(check_bound: float) -> Certificate:
    """One whose check came out at a bound; alpha is 0.03."""
    calibration, check = (
        OpenCount(num_records=200, num_open=0, upper_bound=bound, digest=digest)
        for bound, digest in ((0.02, "c"), (check_bound, "k"))
    )
    return Certificate.make(
        alpha=0.03,
        delta=0.05,
        thresholds={3: 0.5},
        calibration=calibration,
        check=check,
        base_digest="base",
        tensors_sha256="t",
    )


CERTIFICATE = certificate_with(0.025)


def report(
    changes: Mapping[str, float | None] = {},
    *,
    without: str | None = None,
    base: str = "base",
    digest: str = "d",
    certificate: Certificate | None = CERTIFICATE,
) -> EvalReport:
    metrics = [
        Metric(name=name, value=value, direction="higher", num_samples=10, digest=digest)
        for name, value in {**GOOD, **changes}.items()
        if name != without
    ]
    return EvalReport(base_digest=base, part="test", metrics=tuple(metrics), certificate=certificate)


def test_a_good_candidate_without_an_incumbent_is_promoted() -> None:
    decision = POLICY.decide(report(), None)
    assert decision.decision is Decision.PROMOTE
    assert decision.reasons == (
        "forget_unseen/rouge_l_recall is at most 0.15 (promotion.max_forget_rouge), got 0.1",
        "model_utility_ratio is at least 0.98 (promotion.min_utility_ratio), got 0.99",
        "gate/auroc is at least 0.99 (promotion.min_gate_auroc), got 0.995",
        "gate/false_open_rate is at most 0.05 (promotion.max_false_open_rate), got 0.02",
        f"certified: {CERTIFICATE.sentence}",
        "there is no incumbent",
    )


def test_bounds_themselves_pass() -> None:
    at_bounds = dict(zip(GOOD, (0.15, 0.98, 0.99, 0.05), strict=True))
    assert POLICY.decide(report(at_bounds), None).decision is Decision.PROMOTE


@pytest.mark.parametrize(
    ("metric", "value", "reason"),
    [
        ("forget_unseen/rouge_l_recall", 0.151, "must be at most 0.15 (promotion.max_forget_rouge), got 0.151"),
        ("model_utility_ratio", 0.979, "must be at least 0.98 (promotion.min_utility_ratio), got 0.979"),
        ("gate/auroc", 0.5, "must be at least 0.99 (promotion.min_gate_auroc), got 0.5"),
        ("gate/false_open_rate", 0.06, "must be at most 0.05 (promotion.max_false_open_rate), got 0.06"),
    ],
)
def test_either_side_alone_rejects(metric: str, value: float, reason: str) -> None:
    # the other side could not be better, and does not pay for it
    perfect = dict(zip(GOOD, (0.0, 1.0, 1.0, 0.0), strict=True))
    decision = POLICY.decide(report(perfect | {metric: value}), None)
    assert decision.decision is Decision.REJECT
    assert decision.reasons == (f"{metric} {reason}",)


@pytest.mark.parametrize("metric", GOOD)
def test_a_number_that_is_missing_or_null_rejects(metric: str) -> None:
    for unknown in (report(without=metric), report({metric: None})):
        decision = POLICY.decide(unknown, None)
        assert decision.decision is Decision.REJECT
        assert len(decision.reasons) == 1
        assert decision.reasons[0].startswith(f"{metric} must be known")


def test_a_certificate_that_is_missing_or_does_not_hold_rejects() -> None:
    unconfirmed = certificate_with(0.031)
    for certificate, got in ((None, "none"), (unconfirmed, f"one that does not: {unconfirmed.sentence}")):
        decision = POLICY.decide(report(certificate=certificate), None)
        assert decision.decision is Decision.REJECT
        assert decision.reasons == (f"the utility certificate must be there and hold (promotion.require_certificate), got {got}",)
        lenient = PromotionPolicy(PromotionConfig(require_certificate=False)).decide(report(certificate=certificate), None)
        assert lenient.decision is Decision.PROMOTE
        assert not any("certified" in reason for reason in lenient.reasons)


def test_a_certificate_does_not_pay_for_a_breach() -> None:
    decision = POLICY.decide(report({"gate/false_open_rate": 0.06}, certificate=None), None)
    assert [reason.split(" must")[0] for reason in decision.reasons] == ["gate/false_open_rate", "the utility certificate"]


def test_an_incumbent_without_a_certificate_protects_nothing() -> None:
    better = report({"model_utility_ratio": 1.5}, certificate=None)
    decision = POLICY.decide(report(), better)
    assert decision.decision is Decision.PROMOTE
    assert decision.reasons[-1] == (
        "of the incumbent, the utility certificate must be there and hold (promotion.require_certificate), got none"
    )


def test_all_breaches_are_named() -> None:
    decision = POLICY.decide(report({"gate/auroc": None, "model_utility_ratio": 0.1}), None)
    assert [reason.split()[0] for reason in decision.reasons] == ["model_utility_ratio", "gate/auroc"]


def test_a_rejected_candidate_does_not_beat_even_a_worse_incumbent() -> None:
    bad, worse = report({"model_utility_ratio": 0.9}), report({"model_utility_ratio": 0.5})
    assert POLICY.decide(bad, worse).decision is Decision.REJECT


@pytest.mark.parametrize(
    ("candidate", "incumbent"),
    [
        ({"forget_unseen/rouge_l_recall": 0.121, "model_utility_ratio": 1.1}, {"forget_unseen/rouge_l_recall": 0.1}),
        ({"model_utility_ratio": 0.985, "forget_unseen/rouge_l_recall": 0.0}, {"model_utility_ratio": 1.006}),
    ],
)
def test_a_gain_on_one_side_does_not_pay_for_a_loss_on_the_other(
    candidate: dict[str, float], incumbent: dict[str, float]
) -> None:
    decision = POLICY.decide(report(candidate), report(incumbent))
    assert decision.decision is Decision.KEEP
    [reason] = decision.reasons
    assert "worse by more than 0.02 (promotion.incumbent_tolerance)" in reason


def test_a_little_worse_within_the_tolerance_is_promoted_for_a_gain_elsewhere() -> None:
    candidate = report({"forget_unseen/rouge_l_recall": 0.115, "model_utility_ratio": 1.0})
    decision = POLICY.decide(candidate, report())
    assert decision.decision is Decision.PROMOTE
    assert decision.reasons[-1] == "model_utility_ratio is 1 against the incumbent's 0.99, better by 0.01"


def test_the_gate_numbers_are_held_by_their_bounds_alone() -> None:
    candidate = report({"gate/false_open_rate": 0.05, "model_utility_ratio": 1.0})
    assert POLICY.decide(candidate, report({"gate/false_open_rate": 0.0})).decision is Decision.PROMOTE


def test_better_in_nothing_is_kept() -> None:
    assert POLICY.decide(report(), report()).decision is Decision.KEEP
    assert POLICY.decide(report({"model_utility_ratio": 0.985}), report()).decision is Decision.KEEP


@pytest.mark.parametrize(
    ("metric", "value"),
    [("forget_unseen/rouge_l_recall", 0.05), ("model_utility_ratio", 0.995), ("gate/auroc", 1.0), ("gate/false_open_rate", 0.0)],
)
def test_a_gain_in_any_one_number_is_enough(metric: str, value: float) -> None:
    assert POLICY.decide(report({metric: value}), report()).decision is Decision.PROMOTE


@pytest.mark.parametrize("breach", [{"forget_unseen/rouge_l_recall": 0.9, "model_utility_ratio": 1.2}, {"gate/auroc": None}])
def test_an_incumbent_that_breaks_the_policy_protects_nothing(breach: dict[str, float | None]) -> None:
    decision = POLICY.decide(report(), report(breach))
    assert decision.decision is Decision.PROMOTE
    assert decision.reasons[-1].startswith("of the incumbent, ")


def test_reports_on_other_rows_or_another_base_are_not_compared() -> None:
    others = ({"part": "all"}, {"base_variant": "int8"})
    for other in (report(base="another"), report(digest="other rows"), *(report().model_copy(update=other) for other in others)):
        with pytest.raises(PromotionError, match="same base and rows"):
            POLICY.decide(report(), other)


def test_bounds_come_from_the_recipe() -> None:
    strict = PromotionPolicy(PromotionConfig(max_forget_rouge=0.05))
    lenient = PromotionPolicy(PromotionConfig(max_forget_rouge=0.5, incumbent_tolerance=0.3))
    assert strict.decide(report(), None).decision is Decision.REJECT
    candidate = report({"forget_unseen/rouge_l_recall": 0.35, "gate/auroc": 1.0})
    assert lenient.decide(candidate, report()).decision is Decision.PROMOTE
