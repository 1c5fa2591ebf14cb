"""Exact memorization and extraction strength: hand-worked answers and what must hold for any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.errors import DataError
from grun.evaluation.memorization import exact_memorization, extraction_strength

answers = st.lists(st.booleans(), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("right", "memorized", "strength"),
    [
        ((True, True, True, True), 4 / 4, 1 - 0 / 4),
        ((False, True, True, True), 3 / 4, 1 - 1 / 4),
        ((True, False, True, True, True), 4 / 5, 1 - 2 / 5),
        ((True, True, True, False, True), 4 / 5, 1 - 4 / 5),
        # open-unlearning never looks beyond the last token: an answer that ends wrong scores 1/n like one that ends barely right
        ((True, True, True, True, False), 4 / 5, 1 - 4 / 5),
        ((False, False, False), 0.0, 1 / 3),
        ((False,), 0.0, 1.0),
    ],
)
def test_by_hand(right: tuple[bool, ...], memorized: float, strength: float) -> None:
    assert exact_memorization(right) == pytest.approx(memorized, abs=1e-12)
    assert extraction_strength(right) == pytest.approx(strength, abs=1e-12)


@given(answers)
def test_strength_is_that_of_the_first_suffix_that_is_right_throughout(right: list[bool]) -> None:
    n = len(right)
    k = next((k for k in range(n) if all(right[k:])), n - 1)
    assert extraction_strength(right) == pytest.approx(1 - k / n)
    assert 1 / n <= extraction_strength(right) + 1e-12


@given(answers)
def test_another_right_token_never_lowers_either(right: list[bool]) -> None:
    for index in range(len(right)):
        better = [*right[:index], True, *right[index + 1 :]]
        assert exact_memorization(better) >= exact_memorization(right)
        assert extraction_strength(better) >= extraction_strength(right)


@pytest.mark.parametrize("metric", [exact_memorization, extraction_strength])
def test_no_token_is_refused(metric: object) -> None:
    with pytest.raises(DataError, match="got none beside the end of text"):
        metric(())  # type: ignore[operator] # one of the two above
