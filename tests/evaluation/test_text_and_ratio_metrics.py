"""ROUGE-L recall, truth ratios, normalised probability: hand-worked values and what must hold for any."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grun.errors import DataError
from grun.evaluation.rouge import rouge_l_recall
from grun.evaluation.truth_ratio import TRUTH_RATIOS, Side, log_ratio_arithmetic, log_ratio_geometric, normalised_probability

BASE, WRONG = 1.0, (1.5, 2.0, 2.5, 3.0, 3.5)

nlls = st.floats(0, 2000)


@pytest.mark.parametrize(
    ("reference", "generated", "recall"),
    [
        ("The capital of France is Paris.", "Paris is the capital city of France", 4 / 6),
        ("She writes historical novels.", "She wrote a historical novel", 0.75),
        ("She writes historical novels.", "", 0.0),
        ("", "anything", 0.0),
        # of the reference, not of what was generated
        ("blue door", "it was a blue wooden door, I think", 1.0),
    ],
)
def test_rouge_l_recall(reference: str, generated: str, recall: float) -> None:
    assert rouge_l_recall(reference, generated) == pytest.approx(recall)


def test_ratios() -> None:
    assert math.exp(log_ratio_arithmetic(BASE, WRONG)) == pytest.approx(0.2829921086, rel=1e-9)
    assert math.exp(log_ratio_geometric(BASE, WRONG)) == pytest.approx(0.2231301601, rel=1e-9)
    assert math.exp(-log_ratio_geometric(BASE, WRONG)) == pytest.approx(4.4816890703, rel=1e-9)


@pytest.mark.parametrize(
    ("convention", "side", "score"),
    [
        ("truth_ratio_grun", "forget", 0.7170078914),
        ("truth_ratio_grun", "other", 0.7170078914),
        ("truth_ratio_tofu_arithmetic", "forget", 0.2829921086),
        ("truth_ratio_tofu_arithmetic", "other", 0.7170078914),
        ("truth_ratio_tofu_geometric", "forget", 0.2231301601),
        ("truth_ratio_tofu_geometric", "other", 0.7768698399),
        ("truth_ratio_open_unlearning", "forget", 0.2231301601),
        ("truth_ratio_open_unlearning", "other", 0.7768698399),
    ],
)
def test_conventions(convention: str, side: Side, score: float) -> None:
    assert TRUTH_RATIOS[convention](BASE, WRONG, side) == pytest.approx(score, rel=1e-8)


def test_open_unlearning_adds_its_epsilon_to_the_base() -> None:
    convention = TRUTH_RATIOS["truth_ratio_open_unlearning"]
    # P(base) = 1e-10, P(wrong) = 1e-4: R = 1e-4 / 2e-10 = 5e5
    assert convention(10 * math.log(10), (4 * math.log(10),), "forget") == pytest.approx(2e-6, rel=1e-6)
    # P(wrong) = 0 makes R = 0, whose inverse must not be a division by zero
    assert convention(1.0, (5000.0,), "forget") == 0.0


def test_wrong_answers_that_are_likelier_give_no_truth_on_other_sets_and_the_inverse_on_forget_sets() -> None:
    assert TRUTH_RATIOS["truth_ratio_tofu_geometric"](3.0, (1.0,), "forget") == pytest.approx(math.exp(-2))
    assert all(convention(3.0, (1.0,), "other") == 0.0 for convention in TRUTH_RATIOS.values())


@settings(max_examples=60, deadline=None)
@given(nlls, st.lists(nlls, min_size=1, max_size=5), st.sampled_from(["forget", "other"]))
def test_scores_are_shares_however_unlikely_the_answers(base: float, wrong: list[float], side: Side) -> None:
    for convention in TRUTH_RATIOS.values():
        assert 0 <= convention(base, wrong, side) <= 1
    assert 0 <= normalised_probability(base, wrong) <= 1
    # the arithmetic mean is never below the geometric one
    assert log_ratio_arithmetic(base, wrong) >= log_ratio_geometric(base, wrong) - 1e-9


def test_normalised_probability() -> None:
    assert normalised_probability(0.7, (1.2, 2.3, 0.9)) == pytest.approx(0.3806394691, rel=1e-9)
    # every probability is 0 as a float, and still one in four
    assert normalised_probability(900.0, (900.0, 900.0, 900.0)) == pytest.approx(0.25)


def test_no_wrong_answers_are_refused() -> None:
    with pytest.raises(DataError, match="at least one wrong answer"):
        normalised_probability(1.0, ())
    for convention in TRUTH_RATIOS.values():
        with pytest.raises(DataError, match="at least one wrong answer"):
            convention(1.0, (), "forget")
