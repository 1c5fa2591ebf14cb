"""Membership inference: hand-worked scores, and what no transformation may change."""

import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.errors import DataError
from grun.evaluation.membership import lowest_mean, membership_auc, num_lowest, privleak, zlib_bytes

LOGS = (-0.1, -3.0, -0.2, -1.0, -0.4)

# eighths, so that an affine map ties nothing that was apart
scores = st.lists(st.integers(-400, 400).map(lambda eighth: eighth / 8), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("share", "mean"),
    [
        (0.4, (-3.0 - 1.0) / 2),  # 0.4 x 5 = 2 tokens
        (0.2, -3.0),
        (0.1, -3.0),  # 0.5 tokens round down to none, and one is looked at
        (0.79, (-3.0 - 1.0 - 0.4) / 3),  # 3.95 round down to 3
        (1.0, (-0.1 - 3.0 - 0.2 - 1.0 - 0.4) / 5),
    ],
)
def test_lowest_mean_by_hand(share: float, mean: float) -> None:
    assert lowest_mean(LOGS, share) == pytest.approx(mean, abs=1e-12)


def test_the_share_is_open_unlearnings_for_tofu() -> None:
    assert [num_lowest(n) for n in (1, 2, 3, 5, 10, 12)] == [1, 1, 1, 2, 4, 4]
    assert lowest_mean(LOGS) == lowest_mean(LOGS, 0.4)


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=12))
def test_all_tokens_give_the_mean_and_fewer_never_more(logs: list[float]) -> None:
    assert lowest_mean(logs, 1.0) == pytest.approx(sum(logs) / len(logs))
    assert min(logs) - 1e-9 <= lowest_mean(logs, 0.4) <= lowest_mean(logs, 1.0) + 1e-9
    assert lowest_mean(logs[::-1]) == lowest_mean(logs)


def test_zlib_bytes_are_of_the_utf8_text() -> None:
    # two bytes of header, five of a stored block's own, the text, four of a checksum; zlib's fixed codes need 3 + 9 * 8 + 7 bits
    assert zlib_bytes("") == 8
    assert zlib_bytes("blue door") == len(zlib.compress(b"blue door")) == 17
    assert zlib_bytes("é") == zlib_bytes("ab") == 10
    assert zlib_bytes("so " * 100) < 20


@pytest.mark.parametrize(
    ("forget", "nonmembers", "auc"),
    [
        # pairs with the non-member above: of 1.0 all three, of 2.0 two and a half, of 4.0 one
        ((1.0, 2.0, 4.0), (2.0, 3.0, 5.0), (3 + 2.5 + 1) / 9),
        ((1.0, 2.0), (3.0, 4.0, 5.0), 1.0),
        ((3.0, 4.0, 5.0), (1.0,), 0.0),
        ((2.0, 2.0), (2.0,), 0.5),
    ],
)
def test_auc_by_hand(forget: tuple[float, ...], nonmembers: tuple[float, ...], auc: float) -> None:
    assert membership_auc(forget, nonmembers) == pytest.approx(auc, abs=1e-12)


@given(scores, scores)
def test_auc_sees_ranks_alone_and_mirrors(forget: list[float], nonmembers: list[float]) -> None:
    auc = membership_auc(forget, nonmembers)
    assert membership_auc([2 * s + 3 for s in forget], [2 * s + 3 for s in nonmembers]) == pytest.approx(auc)
    assert membership_auc(nonmembers, forget) == pytest.approx(1 - auc)
    assert membership_auc(forget[::-1], nonmembers[::-1]) == pytest.approx(auc)
    # as often seen, as much is known
    assert membership_auc(forget * 2, nonmembers) == pytest.approx(auc)


def test_auc_refuses_no_rows_and_no_numbers() -> None:
    for forget, nonmembers in (([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.inf])):
        with pytest.raises(DataError, match="finite scores of both sets"):
            membership_auc(forget, nonmembers)


@pytest.mark.parametrize(
    ("auc", "retain_only", "leak"),
    [
        (0.9, 0.5, 100 * (0.1 - 0.5) / 0.5),  # -80: forget rows still stand out
        (0.5, 0.5, 0.0),
        (0.2, 0.6, 100 * (0.8 - 0.4) / 0.4),  # +100: they stand out as unknown
    ],
)
def test_privleak_by_hand(auc: float, retain_only: float, leak: float) -> None:
    assert privleak(auc, retain_only) == pytest.approx(leak, abs=1e-6)


def test_privleak_against_a_model_that_tells_all_apart_is_huge_and_finite() -> None:
    assert privleak(1.0, 1.0) == 0
    assert privleak(0.5, 1.0) == pytest.approx(100 * 0.5 / 1e-10)
