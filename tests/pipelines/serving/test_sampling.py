"""Choosing tokens: by hand, by frequency, and independently of who shares the batch."""

from collections import Counter

import pytest
import torch

from pipelines.serving.sampling import Chooser, choose

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def test_greedy_rows_get_the_likeliest_and_draw_nothing() -> None:
    chooser = Chooser(0.0, 1.0, seed=3)
    assert choose(LOGITS[None], [chooser]).tolist() == [0]
    assert chooser.uniform() == Chooser(0.0, 1.0, seed=3).uniform()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, (0.5, 0.3, 0.15, 0.05)),
        (1.0, 0.8, (0.625, 0.375, 0, 0)),  # 0.5 + 0.3 reach it
        (1.0, 0.81, (0.5263, 0.3158, 0.1579, 0)),
        (1.0, 0.01, (1, 0, 0, 0)),  # never fewer than one
        (0.5, 1.0, (0.6849, 0.2466, 0.0616, 0.0068)),  # squares, normalised
    ],
)
def test_tokens_come_as_often_as_they_should(temperature: float, top_p: float, expected: tuple[float, ...]) -> None:
    draws = 4000
    chooser = Chooser(temperature, top_p, seed=0)
    counts = Counter(int(choose(LOGITS[None], [chooser])) for _ in range(draws))
    for token, probability in enumerate(expected):
        assert counts[token] / draws == pytest.approx(probability, abs=0.03)
        if probability == 0:
            assert counts[token] == 0


def test_a_row_draws_the_same_whoever_shares_the_batch() -> None:
    logits = torch.randn(12, 3, 50)
    alone, together = Chooser(1.0, 0.9, seed=7), Chooser(1.0, 0.9, seed=7)
    first = [int(choose(step[1:2], [alone])) for step in logits]
    others = [Chooser(0.7, 1.0, seed=1), together, Chooser(0.0, 1.0, seed=2)]
    second = [int(choose(step, others)[1]) for step in logits]
    assert first == second
    assert len(set(first)) > 3


def test_rows_keep_their_places() -> None:
    logits = torch.full((4, 5), -30.0)
    logits[range(4), [4, 1, 3, 0]] = 30.0
    choosers = [Chooser(temperature, 1.0, seed=0) for temperature in (1.0, 0.0, 1.0, 0.0)]
    assert choose(logits, choosers).tolist() == [4, 1, 3, 0]
