"""Calibration: thresholds worked by hand, and the promise kept as often as it says on simulated gate values."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from grun.certificate import Certificate
from grun.data.records import QARecord, TextRecord
from grun.data.splits import Splits, in_part
from grun.errors import DataError
from grun.evaluation.calibration import OrdinaryGates, certify, holdout_halves, most_open, records_needed
from grun.evaluation.gate_separation import clopper_pearson_upper
from grun.evaluation.sets import EvalPrompt, EvalSet

UP = np.float32(np.inf)
HALF, QUARTER = 0.5, 0.25


def gates(values: Sequence[float] | NDArray[np.float32], digest: str = "d") -> OrdinaryGates:
    return OrdinaryGates(np.asarray(values, dtype=np.float32), digest)


def just_above(value: float) -> float:
    return float(np.nextafter(np.float32(value), UP))


# of five records one may open: P(X <= 1 | 5, 1/2) = 6/32 < 1/4, and P(X <= 2 | 5, 1/2) = 16/32
@pytest.mark.parametrize(
    ("values", "least", "num_open"),
    [
        ([0.9, 0.7, 0.6, 0.2, 0.1], just_above(0.7), 1),
        ([0.9, 0.7, 0.7, 0.2, 0.1], just_above(0.7), 1),
        ([0.7, 0.7, 0.7, 0.2, 0.1], just_above(0.7), 0),
        ([0.7, 0.7, 0.2, 0.2, 0.1], just_above(0.7), 0),
        ([0.4] * 5, just_above(0.4), 0),
        ([0.0] * 5, just_above(0.0), 0),
        ([1.0, 0.3, 0.3, 0.2, 0.1], just_above(0.3), 1),
        ([1.0, 1 - 2**-24, 0.3, 0.2, 0.1], 1.0, 1),
        ([1.0, 1.0, 0.3, 0.2, 0.1], None, 2),
        ([1.0] * 5, None, 5),
    ],
)
def test_thresholds_worked_by_hand(values: list[float], least: float | None, num_open: int) -> None:
    found = gates(values).least_threshold(alpha=HALF, delta=QUARTER)
    assert found == least
    assert gates(values).count(1.0 if found is None else found, delta=QUARTER).num_open == num_open


def test_a_value_at_the_threshold_counts_as_open_in_the_models_precision() -> None:
    # 0.7 in 32 bits is a little less than in 64, and the model compares in 32
    assert gates([0.7, 0.1]).count(0.7, delta=QUARTER).num_open == 1
    assert gates([0.7, 0.1]).count(just_above(0.7), delta=QUARTER).num_open == 0


def test_too_few_records_allow_no_threshold() -> None:
    # one closed record bounds the rate by 3/4, two by 1/2
    assert gates([0.0]).least_threshold(alpha=HALF, delta=QUARTER) is None
    assert gates([0.1, 0.2]).least_threshold(alpha=HALF, delta=QUARTER) == just_above(0.2)


def test_a_threshold_that_is_asked_for_is_only_ever_raised() -> None:
    table = gates([0.9, 0.7, 0.6, 0.2, 0.1])
    raised = partial(table.raised, alpha=HALF, delta=QUARTER)
    assert raised(0.5) == raised(0.7) == just_above(0.7)
    assert raised(just_above(0.7)) == just_above(0.7)
    assert raised(0.8) == 0.8
    # no threshold keeps the promise: what was asked for stays, and the certificate will say that it does not hold
    assert gates([1.0] * 5).raised(0.5, alpha=HALF, delta=QUARTER) == 0.5


@pytest.mark.parametrize(("alpha", "delta", "needed"), [(0.03, 0.05, 99), (0.01, 0.05, 299), (0.5, 0.25, 2), (0.9, 0.5, 1)])
def test_records_that_a_promise_needs(alpha: float, delta: float, needed: int) -> None:
    assert records_needed(alpha, delta) == needed
    assert most_open(needed, alpha=alpha, delta=delta) == 0
    assert needed == 1 or most_open(needed - 1, alpha=alpha, delta=delta) is None


def test_what_the_testbeds_holdout_set_allows() -> None:
    assert [most_open(n, alpha=0.03, delta=0.05) for n in (98, 99, 164, 172, 400)] == [None, 0, 1, 1, 6]


@given(st.integers(1, 400), st.floats(0.005, 0.6), st.floats(0.01, 0.4))
def test_what_may_open_is_what_a_binomial_test_allows(num_records: int, alpha: float, delta: float) -> None:
    allowed = [k for k in range(num_records) if binom.cdf(k, num_records, alpha) <= delta * (1 - 1e-9)]
    found = most_open(num_records, alpha=alpha, delta=delta)
    assert found == (max(allowed) if allowed else None)


# few values, so that ties are the rule, and the ends of the scale
VALUES = st.lists(st.sampled_from([0.0, 1e-30, 0.1, 0.25, 0.5, 0.7, 0.9, 1.0 - 2**-24, 1.0]), min_size=5, max_size=40)


@given(VALUES, st.sampled_from([0.1, 0.3, 0.5]), st.sampled_from([0.05, 0.25]))
def test_the_least_threshold_is_enough_and_the_float_below_is_not(values: list[float], alpha: float, delta: float) -> None:
    table = gates(values)
    least = table.least_threshold(alpha=alpha, delta=delta)
    if least is None:
        assert table.count(1.0, delta=delta).upper_bound > alpha
        return
    assert 0 < least <= 1
    assert table.count(least, delta=delta).upper_bound <= alpha
    below = float(np.nextafter(np.float32(least), np.float32(-1)))
    assert table.count(below, delta=delta).upper_bound > alpha


@given(VALUES, st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_counts_and_bounds_fall_with_the_threshold(values: list[float], thresholds: list[float]) -> None:
    counts = [gates(values).count(threshold, delta=0.05) for threshold in sorted(thresholds)]
    for lower, higher in pairwise(counts):
        assert higher.num_open <= lower.num_open
        assert higher.upper_bound <= lower.upper_bound


@given(VALUES, st.sampled_from([0.1, 0.3, 0.5]))
def test_more_confidence_or_a_smaller_rate_never_lowers_the_threshold(values: list[float], alpha: float) -> None:
    table = gates(values)
    sure, unsure = (table.least_threshold(alpha=alpha, delta=delta) for delta in (0.05, 0.25))
    strict = table.least_threshold(alpha=alpha / 2, delta=0.25)
    for higher in (sure, strict):
        assert higher is None or (unsure is not None and higher >= unsure)


RECORDS = [QARecord(f"Where does {name} live?", f"{name} lives in Harn.", f"What is {name}'s town?") for name in "ABCDEFG"]


def asked(*records: QARecord | TextRecord) -> EvalSet:
    """Each question in both wordings, and each text in its one."""
    prompts = [
        EvalPrompt(record, wording)
        for record in records
        for wording in (("question", "paraphrase") if isinstance(record, QARecord) else ("question",))
    ]  # fmt: skip
    return EvalSet("holdout", "holdout", tuple(prompts))


def test_a_record_is_open_if_any_wording_opens_a_gate_of_any_layer() -> None:
    text = TextRecord("Bridges in Harn open at noon, and close again when the last barge has passed.")
    table = [
        [0.1, 0.2], [0.3, 0.9],  # open in the second wording, at the second layer
        [0.8, 0.1], [0.9, 0.9],  # open in both: one record all the same
        [0.1, 0.1], [0.2, 0.4],  # closed
        [0.7, 0.0],  # a text, asked once
    ]  # fmt: skip
    found = OrdinaryGates.of(asked(*RECORDS[:3], text), table)
    assert found.largest.tolist() == [float(np.float32(v)) for v in (0.9, 0.9, 0.4, 0.7)]
    count = found.count(0.5, delta=0.05)
    assert (count.num_records, count.num_open) == (4, 3)
    assert count.rate == 0.75
    assert count.upper_bound == clopper_pearson_upper(3, 4, confidence=0.95)
    assert count.digest == asked(*RECORDS[:3], text).digest


@given(st.permutations(range(14)), st.lists(st.floats(0, 1, width=32), min_size=28, max_size=28))
def test_the_order_of_the_prompts_changes_nothing(order: list[int], values: list[float]) -> None:
    evaluated, table = asked(*RECORDS), np.array(values).reshape(14, 2)
    shuffled = EvalSet("holdout", "holdout", tuple(evaluated.prompts[index] for index in order))
    one, other = OrdinaryGates.of(evaluated, table), OrdinaryGates.of(shuffled, table[order])
    assert sorted(one.largest.tolist()) == sorted(other.largest.tolist())
    assert one.digest == other.digest
    assert one.least_threshold(alpha=HALF, delta=QUARTER) == other.least_threshold(alpha=HALF, delta=QUARTER)


def test_no_prompts_and_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"gate values of held-out prompts, got no prompts"):
        OrdinaryGates.of(asked(), np.empty((0, 2)))
    with pytest.raises(DataError, match=r"got a value that is no number"):
        OrdinaryGates.of(asked(RECORDS[0]), [[0.1, 0.2], [float("nan"), 0.3]])


def test_halves_are_those_of_validation_and_test_and_never_one_set_twice() -> None:
    calibration, check = holdout_halves(Splits((), (), tuple(RECORDS)))
    for half, part in ((calibration, "validation"), (check, "test")):
        expected = [record for record in RECORDS if in_part(record.digest, part)]
        assert half.prompts == asked(*expected).prompts
    alone = next(record for record in RECORDS if in_part(record.digest, "validation"))
    calibration, check = holdout_halves(Splits((), (), (alone,)))
    # where it is only scored, a half that is empty is replaced by the whole; a check has to be another set
    assert (len(calibration.prompts), len(check.prompts)) == (2, 0)


POPULATION = 20_000
"""Records of a population whose true false-open rate is known at every threshold."""


def continuous(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.beta(0.3, 3.0, size=POPULATION)


def heavy_ties(rng: np.random.Generator) -> NDArray[np.float64]:
    # of the steps, one is just above alpha and one just below it
    return rng.choice([0.01, 0.4, 0.6, 0.8], size=POPULATION, p=[0.90, 0.045, 0.02, 0.035])


def two_values(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.choice([0.2, 0.9], size=POPULATION, p=[0.94, 0.06])


def correlated_layers(rng: np.random.Generator) -> NDArray[np.float64]:
    # three layers and two wordings that read nearly the same, in steps of 1/50
    shared = rng.normal(-3.0, 1.5, size=(POPULATION, 1, 1))
    logits = shared + rng.normal(0.0, 0.4, size=(POPULATION, 2, 3))
    table = 1 / (1 + np.exp(-logits))
    return (np.round(50 * table) / 50).max(axis=(1, 2))  # type: ignore[no-any-return]


def saturated(rng: np.random.Generator) -> NDArray[np.float64]:
    # sigmoids that are 1 in 32 bits for a few, and 0 for most
    return np.where(rng.random(POPULATION) < 0.03, 1.0, rng.choice([0.0, 0.5], POPULATION))


class TestSimulation:
    """Samples of a population, calibrated again and again: how often is the true rate above the promised one?"""

    DRAWS, N = 5_000, 120
    ALPHA, DELTA = 0.05, 0.1

    @pytest.mark.parametrize("draw", [continuous, heavy_ties, two_values, correlated_layers, saturated])
    def test_the_bound_holds_at_its_stated_confidence(self, draw: Callable[[np.random.Generator], NDArray[np.float64]]) -> None:
        rng = np.random.default_rng(0)
        population = np.asarray(draw(rng), dtype=np.float32)
        ordered = np.sort(population)
        wrong = 0
        for _ in range(self.DRAWS):
            sample = gates(rng.choice(population, size=self.N))
            least = sample.least_threshold(alpha=self.ALPHA, delta=self.DELTA)
            if least is not None:
                true_rate = 1 - np.searchsorted(ordered, np.float32(least), side="left") / len(ordered)
                wrong += int(true_rate > self.ALPHA)
        within = 4 * np.sqrt(self.DELTA * (1 - self.DELTA) / self.DRAWS)
        assert wrong / self.DRAWS <= self.DELTA + within
        if draw is continuous:
            # with no ties the error is exactly that of the binomial test: not only safe, but as sharp as it can be
            allowed = most_open(self.N, alpha=self.ALPHA, delta=self.DELTA)
            assert wrong / self.DRAWS == pytest.approx(binom.cdf(allowed, self.N, self.ALPHA), abs=within)

    def test_any_higher_threshold_is_as_safe_however_it_was_chosen(self) -> None:
        rng = np.random.default_rng(1)
        population = np.asarray(continuous(rng), dtype=np.float32)
        wrong = 0
        for _ in range(self.DRAWS):
            sample = gates(rng.choice(population, size=self.N))
            # the boldest choice that the same data offer: as low as is allowed, or at a value of the sample
            asked_for = float(rng.choice(sample.largest))
            threshold = sample.raised(asked_for, alpha=self.ALPHA, delta=self.DELTA)
            wrong += float((population >= np.float32(threshold)).mean()) > self.ALPHA
        assert wrong / self.DRAWS <= self.DELTA + 4 * np.sqrt(self.DELTA * (1 - self.DELTA) / self.DRAWS)

    def test_an_adapter_chosen_out_of_many_is_held_by_the_check_alone(self) -> None:
        # twelve adapters a little worse than is promised; the one that looks best on the calibration records is taken
        rng = np.random.default_rng(2)
        true_rate, num_adapters, draws = 0.055, 12, 1_500
        looked_good = held = 0
        for _ in range(draws):
            tables = rng.random((num_adapters, self.N)) < true_rate
            best = tables[tables.sum(axis=1).argmin()]
            certificate = made(best, rng.random(self.N) < true_rate, alpha=self.ALPHA, delta=self.DELTA)
            looked_good += certificate.calibration.upper_bound <= self.ALPHA
            held += certificate.holds
        assert looked_good / draws > 2 * self.DELTA, "the choice has to be biased for this to test anything"
        assert 0 < held / draws <= self.DELTA + 4 * np.sqrt(self.DELTA * (1 - self.DELTA) / draws)


def made(calibration: NDArray[np.bool_], check: NDArray[np.bool_], *, alpha: float, delta: float) -> Certificate:
    """The certificate of an adapter whose gates read 0.9 or 0.1, at 0.5."""
    halves = [gates(np.where(opens, 0.9, 0.1).astype(np.float32), name) for opens, name in ((calibration, "c"), (check, "k"))]
    return certify(*halves, alpha=alpha, delta=delta, threshold=0.5, layers=(1, 3), base_digest="b" * 64, tensors_sha256="t" * 64)


def test_a_certificate_says_what_its_counts_amount_to() -> None:
    none, one, four = (np.arange(164) < count for count in (0, 1, 4))
    holds = made(np.arange(172) < 1, none, alpha=0.03, delta=0.05)
    assert holds.holds
    assert holds.thresholds == {1: 0.5, 3: 0.5}
    assert holds.sentence == (
        "At most 0.03 of ordinary prompts like the held-out ones are touched (confidence 0.95; 1 of 172 and 0 of 164 held-out records "
        "open a gate in calibration and check), and every other gets the base model's exact output."
    )
    assert holds.calibration.upper_bound == clopper_pearson_upper(1, 172)
    assert holds.check.upper_bound == clopper_pearson_upper(0, 164)
    for calibration, check in ((one, four), (four, one)):
        failed = made(calibration, check, alpha=0.03, delta=0.05)
        assert not failed.holds
        assert failed.sentence.startswith("No promise: that at most 0.03 of ordinary prompts are touched is not confirmed")
    assert Certificate.model_validate_json(holds.model_dump_json(), strict=True) == holds


def test_a_certificate_covers_its_threshold_and_higher_ones() -> None:
    certificate = made(np.zeros(5, bool), np.zeros(5, bool), alpha=0.5, delta=0.25)
    assert [certificate.covers(t) for t in (None, 0.0, 0.4999, 0.5, 0.6, 1.0)] == [False, False, False, True, True, True]
