"""Choosing tokens: by hand, by frequency, and independently of who shares the batch."""

from collections import Counter

import pytest
import torch

from pipelines.serving.sampling import NO_TOKEN, Chooser, choose

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


TINY = (1e-300, 3e-308, 1e-308, 1e-320, 5e-324)
"""Down to the smallest double; the last three have fewer digits than others."""


@pytest.mark.parametrize("temperature", TINY)
def test_a_tiny_temperature_is_the_limit_of_small_ones(temperature: float) -> None:
    """The likeliest token, and each of several that are equally likely."""
    for logits in ([-40.0, 3.0, 2.999, 0.0], [1.0, 3e38, -3e38, 0.0], [-3e38, -1e30, -2e30, float("-inf")]):
        assert choose(torch.tensor([logits]), [Chooser(temperature, 1.0, seed=0)]).tolist() == [1]
    chooser, tied = Chooser(temperature, 1.0, seed=0), torch.tensor([[5.0, 7.0, 7.0, -7.0]])
    counts = Counter(int(choose(tied, [chooser])) for _ in range(400))
    assert set(counts) == {1, 2}
    assert counts[1] / 400 == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 2.0])
@pytest.mark.parametrize("top_p", TINY)
def test_a_tiny_share_is_the_likeliest_token(temperature: float, top_p: float) -> None:
    for logits in ([0.0, 0.1, 0.0], [-3e38, 3e38, 0.0], [1.0, 1.0 + 1e-6, 1.0]):
        assert choose(torch.tensor([logits]), [Chooser(temperature, top_p, seed=0)]).tolist() == [1]


@pytest.mark.parametrize("bad", [[float("nan"), 1, 2], [0, float("inf"), 1], [float("-inf")] * 3], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0])
def test_a_row_without_a_distribution_has_no_token_and_the_others_theirs(bad: list[float], temperature: float) -> None:
    good = torch.tensor([0.2, 0.5, 0.3]).log()
    alone, together = Chooser(1.0, 1.0, seed=4), Chooser(1.0, 1.0, seed=4)
    for _ in range(20):
        batch = torch.stack([good, torch.tensor(bad), good])
        tokens = choose(batch, [together, Chooser(temperature, 0.9, seed=0), Chooser(0.0, 1.0, seed=0)])
        assert tokens.tolist() == [int(choose(good[None], [alone])), NO_TOKEN, 1]
