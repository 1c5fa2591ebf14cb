"""ROUGE recall, truth ratios, normalised probability: hand-worked values and what must hold for any."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grun.errors import DataError
from grun.evaluation.rouge import rouge_1_recall, rouge_l_recall
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


@pytest.mark.parametrize(
    ("reference", "generated", "recall"),
    [
        # the, capital, of, franc, is, pari: all six, in any order
        ("The capital of France is Paris.", "Paris is the capital city of France", 1.0),
        ("She writes historical novels.", "She wrote a historical novel", 3 / 4),
        # a word counts as often as the generated text has it: so, so, so against so, so
        ("so so so far", "so far so good", 3 / 4),
        ("She writes historical novels.", "", 0.0),
        ("", "anything", 0.0),
    ],
)
def test_rouge_1_recall(reference: str, generated: str, recall: float) -> None:
    assert rouge_1_recall(reference, generated) == pytest.approx(recall)
    assert rouge_1_recall(reference, generated) >= rouge_l_recall(reference, generated)


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
        # R = e^-2.5 / (e^-1 + 1e-10) = 0.0820849986 / 0.3678794413 = 0.2231301600
        ("truth_ratio_closer_to_1_better", "forget", 0.2231301601),
        ("truth_ratio_closer_to_1_better", "other", 0.2231301601),
        ("truth_ratio_true_better", "forget", 0.7768698399),
        ("truth_ratio_true_better", "other", 0.7768698399),
        # e^-1 / (e^-1 + e^-2.5 + 1e-10) = 0.3678794412 / 0.4499644398
        ("truth_ratio_prob_mean", "forget", 0.8175744762),
        ("truth_ratio_prob_mean", "other", 0.8175744762),
    ],
)
def test_conventions(convention: str, side: Side, score: float) -> None:
    assert TRUTH_RATIOS[convention](BASE, WRONG, side) == pytest.approx(score, rel=1e-8)


def test_open_unlearning_adds_its_epsilon_to_the_base() -> None:
    convention = TRUTH_RATIOS["truth_ratio_closer_to_1_better"]
    # P(base) = 1e-10, P(wrong) = 1e-4: R = 1e-4 / 2e-10 = 5e5
    assert convention(10 * math.log(10), (4 * math.log(10),), "forget") == pytest.approx(2e-6, rel=1e-6)
    # P(wrong) = 0 makes R = 0, whose inverse must not be a division by zero
    assert convention(1.0, (5000.0,), "forget") == 0.0
    # 1e-10 / (1e-10 + 1e-10 + 1e-10)
    prob_mean = TRUTH_RATIOS["truth_ratio_prob_mean"]
    assert prob_mean(10 * math.log(10), (10 * math.log(10),), "forget") == pytest.approx(1 / 3, rel=1e-6)
    assert TRUTH_RATIOS["truth_ratio_true_better"](10 * math.log(10), (10 * math.log(10),), "other") == pytest.approx(0.5)


def test_wrong_answers_that_are_likelier_give_no_truth_on_other_sets_and_the_inverse_on_forget_sets() -> None:
    assert TRUTH_RATIOS["truth_ratio_tofu_geometric"](3.0, (1.0,), "forget") == pytest.approx(math.exp(-2))
    better = TRUTH_RATIOS.keys() - {"truth_ratio_closer_to_1_better", "truth_ratio_prob_mean"}
    assert all(TRUTH_RATIOS[convention](3.0, (1.0,), "other") == 0.0 for convention in better)


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
