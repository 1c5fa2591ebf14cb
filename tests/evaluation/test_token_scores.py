"""What is kept of logits, token by token."""

import math

import pytest
import torch

from grun.evaluation.token_scores import token_scores

# method.md 6.7: three answer tokens over a vocabulary of four
LOGITS = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, -1], [0.5, 0.5, 0, 0]])
TARGETS = torch.tensor([0, 1, 3])


def test_golden_log_probabilities_and_first_choices() -> None:
    scores = token_scores(LOGITS, TARGETS)
    assert scores.log_prob.tolist() == pytest.approx([-0.3407529539, -0.6265233750, -1.6672241647], abs=1e-6)
    assert scores.right.tolist() == [True, True, False]


def test_standardised_by_hand() -> None:
    # of two outcomes of probability p and q = 1 - p: mu = p ln p + q ln q, sigma^2 = p q (ln p - ln q)^2,
    # so z = q (ln p - ln q) / sigma = sqrt(q / p) for the likelier and -sqrt(p / q) for the other
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    scores = token_scores(logits, torch.tensor([0, 1]))
    assert scores.standardised.tolist() == pytest.approx([math.sqrt(1 / 3), -math.sqrt(3)], abs=1e-6)
    # row one of the golden logits: e^2 and three ones, sum s = e^2 + 3; ln p = 2 - ln s and - ln s
    s = math.exp(2) + 3
    logs, p = (2 - math.log(s), -math.log(s)), (math.exp(2) / s, 1 / s)
    mean = p[0] * logs[0] + 3 * p[1] * logs[1]
    variance = p[0] * logs[0] ** 2 + 3 * p[1] * logs[1] ** 2 - mean**2
    assert token_scores(LOGITS, TARGETS).standardised[0] == pytest.approx((logs[0] - mean) / math.sqrt(variance), abs=1e-6)


def test_a_variance_of_nothing_counts_as_a_millionth() -> None:
    # uniform: every ln p is the mean; and all probability on one token: the other lies 40 nats below a mean of 0
    logits = torch.tensor([[0.0, 0.0], [40.0, 0.0]])
    assert token_scores(logits, torch.tensor([1, 1])).standardised.tolist() == pytest.approx(
        [0.0, -40 / 1e-3], rel=1e-4, abs=1e-6
    )


def test_a_masked_part_of_the_vocabulary_does_not_count() -> None:
    masked = torch.cat([LOGITS, torch.full((3, 5), -math.inf)], dim=1)
    for name in ("log_prob", "right", "standardised"):
        torch.testing.assert_close(getattr(token_scores(masked, TARGETS), name), getattr(token_scores(LOGITS, TARGETS), name))


def test_chunks_and_chosen_positions_change_nothing() -> None:
    logits, targets = torch.randn(600, 11), torch.randint(11, (600,))
    whole = token_scores(logits, targets)
    chosen = torch.tensor([599, 3, 256, 255])
    part = token_scores(logits, targets, chosen)
    for name in ("log_prob", "right", "standardised"):
        alone = torch.cat([getattr(token_scores(logits[i : i + 1], targets[i : i + 1]), name) for i in range(600)])
        torch.testing.assert_close(getattr(whole, name), alone)
        torch.testing.assert_close(getattr(part, name), alone[chosen])
    assert (token_scores(logits + 7, targets).right == whole.right).all()
