"""The verdict by cases: both sides, the bounds themselves, what is missing, and the words and numbers of the sentence."""

from collections.abc import Mapping
from typing import Any

import pytest

from grun.config import PromotionConfig
from grun.evaluation.attacks import AttackResult
from grun.evaluation.report import EvalReport
from grun.evaluation.report_parts import Finding
from grun.evaluation.verdict import give_verdict, worst_attack
from tests.evaluation.example_report import example_report, metric

BOUNDS = PromotionConfig()
GOOD = {"forget_unseen/rouge_l_recall": 0.041, "model_utility_ratio": 0.996, "gate/auroc": 0.995, "gate/false_open_rate": 1 / 164}


def report(changes: Mapping[str, float | None] = {}, *, without: tuple[str, ...] = (), **fields: Any) -> EvalReport:
    metrics = tuple(metric(name, value) for name, value in {**GOOD, **changes}.items() if name not in without)
    return EvalReport.model_validate({"base_digest": "b", "metrics": metrics, **fields})


def finding(found: EvalReport, question: str) -> Finding:
    [one] = [f for f in give_verdict(found, BOUNDS).findings if f.question == question]
    return one


def attack(name: str, got: float, target: str = "prompts") -> AttackResult:
    return AttackResult.model_validate(
        {"name": name, "family": "f", "description": "d.", "target": target, "num_prompts": 4, "forget_rouge_l_recall": got}
    )


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "forgotten"),
        (
            {"forget_unseen/rouge_l_recall": 0.15, "model_utility_ratio": 0.98, "gate/auroc": 0.99, "gate/false_open_rate": 0.05},
            "forgotten",
        ),
        ({"forget_unseen/rouge_l_recall": 0.151}, "not forgotten"),
        ({"model_utility_ratio": 0.979}, "damaged"),
        ({"gate/false_open_rate": 0.051}, "damaged"),
        ({"gate/auroc": 0.98}, "undecided"),
        ({"forget_unseen/rouge_l_recall": 0.5, "model_utility_ratio": 0.5}, "not forgotten"),
        # a number that is missing pays for nothing that is known
        ({"forget_unseen/rouge_l_recall": None}, "undecided"),
        ({"forget_unseen/rouge_l_recall": None, "model_utility_ratio": 0.5}, "damaged"),
        ({"model_utility_ratio": None, "forget_unseen/rouge_l_recall": 0.5}, "not forgotten"),
        ({"model_utility_ratio": None}, "undecided"),
    ],
)
def test_status(changes: Mapping[str, float | None], status: str) -> None:
    assert give_verdict(report(changes), BOUNDS).status == status


@pytest.mark.parametrize("name", GOOD)
def test_a_number_that_was_not_measured_leaves_it_undecided(name: str) -> None:
    verdict = give_verdict(report(without=(name,)), BOUNDS)
    assert verdict.status == "undecided"
    assert "not known: " in verdict.sentence


def test_the_bounds_are_those_of_the_policy() -> None:
    strict = PromotionConfig(max_forget_rouge=0.04)
    assert give_verdict(report(), strict).status == "not forgotten"


def test_the_sentence_carries_its_numbers_as_people_read_them() -> None:
    before = (metric("forget_unseen/rouge_l_recall", 0.972),)
    assert give_verdict(report(base_metrics=before), BOUNDS).sentence == (
        "Forgotten: asked in words it was not trained on, the model says 4.1 % of what was to be forgotten, where it said 97.2 % "
        "before; it keeps 99.6 % of its usefulness; 1 of 164 ordinary prompts are touched."
    )
    assert "before" not in give_verdict(report(), BOUNDS).sentence


def test_both_sides_are_named_where_both_fail() -> None:
    both = give_verdict(report({"forget_unseen/rouge_l_recall": 0.5, "model_utility_ratio": 0.5}), BOUNDS)
    assert both.sentence.startswith("Not forgotten, and damaged: ")
    assert "keeps 50 % of its usefulness" in both.sentence


def test_a_gate_that_does_not_part_the_prompts_is_said() -> None:
    assert "with 0.980 only, where 0.99 is asked for" in give_verdict(report({"gate/auroc": 0.98}), BOUNDS).sentence


def test_the_worst_attack_by_prompts_is_held_against_the_bound_of_plain_prompts() -> None:
    tried = [attack("b", 0.3), attack("a", 0.3), attack("mild", 0.1), attack("off", 1.0, "model")]
    found = report(attacks=tried)
    worst = worst_attack(found)
    assert worst is not None
    assert worst.name == "a"
    verdict = give_verdict(found, BOUNDS)
    assert verdict.status == "forgotten"
    assert verdict.sentence.endswith("the worst way of asking (a) still gets 30 %.")
    answer = finding(found, "attacks")
    assert answer.answer == "no"
    assert "gets 100 % (off)" in answer.text
    assert finding(report(attacks=[attack("mild", 0.15), attack("off", 1.0, "model")]), "attacks").answer == "yes"


@pytest.mark.parametrize("tried", [[], [attack("off", 1.0, "model")]])
def test_attacks_that_were_not_tried_are_not_withstood(tried: list[AttackResult]) -> None:
    assert worst_attack(report(attacks=tried)) is None
    assert finding(report(attacks=tried), "attacks").answer == "unknown"


def test_a_certificate_is_kept_by_what_was_kept_aside_and_only_on_its_base() -> None:
    whole = example_report()
    assert whole.certificate is not None
    assert finding(whole, "certified").answer == "yes"
    assert "With 95 % confidence at most 5 % of ordinary prompts are touched" in finding(whole, "certified").text
    broken = whole.certificate.model_copy(update={"holds": False})
    assert finding(whole.model_copy(update={"certificate": broken}), "certified").answer == "no"
    assert finding(whole.model_copy(update={"base_digest": "other"}), "certified").answer == "no"
    assert finding(report(), "certified").answer == "unknown"


def test_every_question_is_answered_once() -> None:
    for found in (report(), report(without=tuple(GOOD)), example_report()):
        questions = [f.question for f in give_verdict(found, BOUNDS).findings]
        assert questions == ["forgotten", "undamaged", "certified", "attacks"]
