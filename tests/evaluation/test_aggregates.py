"""Model utility, forget quality and gate separation."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grun.errors import DataError
from grun.evaluation.forget_quality import forget_quality
from grun.evaluation.gate_separation import clopper_pearson_upper, gate_auroc, open_rates
from grun.evaluation.model_utility import model_utility

SAMPLES = [0.5, 0.7, 0.9, 1.1, 1.3], [0.6, 0.8, 1.6, 1.8, 2.0, 2.2]


def test_model_utility() -> None:
    assert model_utility((0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.95, 0.85, 0.75)) == pytest.approx(0.6657403158, rel=1e-9)


def test_a_single_zero_makes_model_utility_zero() -> None:
    assert model_utility((0.9, 0.0, 0.9)) == 0.0


@pytest.mark.parametrize("bad", [(), (0.5, -0.1), (0.5, math.nan)])
def test_model_utility_refuses_what_is_no_share(bad: tuple[float, ...]) -> None:
    with pytest.raises(DataError):
        model_utility(bad)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_model_utility_lies_between_the_worst_and_the_mean(numbers: list[float]) -> None:
    assert min(numbers) - 1e-12 <= model_utility(numbers) <= sum(numbers) / len(numbers) + 1e-12


def test_forget_quality() -> None:
    quality = forget_quality(*SAMPLES)
    assert quality.ks_statistic == pytest.approx(2 / 3)
    assert quality.p_value == pytest.approx(0.1082251082, rel=1e-8)
    assert quality.log10_p == pytest.approx(math.log10(0.1082251082), rel=1e-8)


def test_forget_quality_is_two_sided_and_sees_ranks_alone() -> None:
    expected = forget_quality(*SAMPLES)
    inverse = forget_quality(*([1 / r for r in sample] for sample in SAMPLES))
    logarithm = forget_quality(*([math.log(r) for r in sample] for sample in SAMPLES))
    assert inverse == pytest.approx(expected)
    assert logarithm == pytest.approx(expected)
    assert forget_quality(*reversed(SAMPLES)) == pytest.approx(expected)


def test_a_p_value_too_small_for_a_float_has_a_finite_logarithm() -> None:
    quality = forget_quality(range(1000), range(2000, 3000))
    assert quality.p_value == 0.0
    assert quality.log10_p == pytest.approx(-307.65, abs=0.01)


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0]])
def test_forget_quality_refuses_no_ratios_and_no_numbers(bad: list[float]) -> None:
    with pytest.raises(DataError, match="retain-only"):
        forget_quality([1.0], bad)
    with pytest.raises(DataError, match="unlearned"):
        forget_quality(bad, [1.0])


def test_auroc_counts_ordered_pairs_and_ties_as_half() -> None:
    # layer 0: pairs 0.9>0.2, 0.9>0.9 tie, 0.5>0.2, 0.5<0.9: 2.5 of 4; layer 1 is upside down
    forget, ordinary = [[0.9, 0.1], [0.5, 0.0]], [[0.2, 0.3], [0.9, 0.2]]
    auroc = gate_auroc(forget, ordinary)
    assert auroc.per_layer == (0.625, 0.0)
    # largest of each row: 0.9, 0.5 against 0.3, 0.9
    assert auroc.largest == 0.625


def test_the_largest_gate_is_of_each_prompt_not_of_each_layer() -> None:
    forget, ordinary = [[0.9, 0.1], [0.1, 0.9]], [[0.5, 0.5], [0.5, 0.5]]
    assert gate_auroc(forget, ordinary).largest == 1.0
    assert gate_auroc(forget, ordinary).per_layer == (0.5, 0.5)


def test_open_rates_count_the_threshold_itself_as_open() -> None:
    rates = open_rates([[0.5, 0.1], [0.4, 0.6], [0.4, 0.1], [0.9, 0.9]], 0.5)
    assert rates.per_layer == (0.5, 0.5)
    assert rates.any == 0.75


def test_a_value_at_the_threshold_opens_in_the_precision_of_the_model() -> None:
    # 0.7 in 32 bits is a little less than in 64
    assert open_rates([[0.699999988079071]], 0.7).any == 1.0


def test_soft_gates_are_never_closed() -> None:
    assert open_rates([[0.0], [1e-30]], None).any == 1.0


def test_clopper_pearson_upper_bound() -> None:
    # none of n: 1 - 0.05 ** (1/n)
    assert clopper_pearson_upper(0, 100) == pytest.approx(1 - 0.05**0.01)
    assert clopper_pearson_upper(7, 7) == 1.0
    # at the bound, seeing k or fewer has probability 0.05
    bound = clopper_pearson_upper(2, 10)
    assert sum(math.comb(10, k) * bound**k * (1 - bound) ** (10 - k) for k in range(3)) == pytest.approx(0.05)


@pytest.mark.parametrize(("forget", "ordinary"), [([], [[0.1]]), ([[0.1]], []), ([[0.1, 0.2]], [[0.1]]), ([[], []], [[0.1]])])
def test_gate_values_of_no_prompts_or_of_other_layers_are_refused(forget: list[list[float]], ordinary: list[list[float]]) -> None:
    with pytest.raises(DataError):
        gate_auroc(forget, ordinary)


def test_a_bound_on_no_prompts_is_refused() -> None:
    with pytest.raises(DataError, match="at least one prompt"):
        clopper_pearson_upper(0, 0)
