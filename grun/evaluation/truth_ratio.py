"""The truth ratio: how likely wrong answers are beside a right one, in the conventions in circulation.

    R = mean_k P(wrong_k) / P(base)             arithmetic
    R = exp(mean_k -a(wrong_k)) / P(base)       geometric         P = exp(-a), a in nats a token

| convention | R | forget sets | other sets |
|---|---|---|---|
| `truth_ratio_grun` (GRUN's code) | arithmetic | max(0, 1-R) | max(0, 1-R) |
| `truth_ratio_tofu_arithmetic` (TOFU, newer code) | arithmetic | min(R, 1/R) | max(0, 1-R) |
| `truth_ratio_tofu_geometric` (TOFU, paper) | geometric | min(R, 1/R) | max(0, 1-R) |
| `truth_ratio_closer_to_1_better` (open-unlearning) | geometric, 1e-10 in denominators | min(R, 1/R) | min(R, 1/R) |
| `truth_ratio_true_better` (open-unlearning) | geometric, 1e-10 in denominators | max(0, 1-R) | max(0, 1-R) |
| `truth_ratio_prob_mean` (open-unlearning) | 1 / (1 + R), R geometric, 1e-10 in the denominator | 1 / (1 + R) | 1 / (1 + R) |

The last three are open-unlearning's `aggregator` settings by their own names, on any set:

| its metric | aggregator | here |
|---|---|---|
| `forget_truth_ratio`, current settings | `prob_mean` | `forget/truth_ratio_prob_mean` |
| `forget_truth_ratio`, earlier settings | `closer_to_1_better` | `forget/truth_ratio_closer_to_1_better` |
| `retain_Truth_Ratio`, `ra_Truth_Ratio`, `wf_Truth_Ratio` | `true_better` | `<set>/truth_ratio_true_better` |

Which way is better depends on the side: on a forget set a *lower* score of GRUN, `true_better` and `prob_mean` means more
forgetting, and a *higher* one of the others means that right and wrong answers are told apart less; on a set that is kept
it is the other way round for `closer_to_1_better`, while all others should be high. R is computed as its logarithm, as an
unlearned model's P(base) may be too small for a float; open-unlearning's 1e-10 is what keeps its own R finite.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from scipy.special import logsumexp

from grun.errors import DataError

__all__ = [
    "FALLS_WHEN_FORGOTTEN",
    "LOW_WHEN_KEPT",
    "TRUTH_RATIOS",
    "Side",
    "TruthRatio",
    "log_ratio_arithmetic",
    "log_ratio_geometric",
    "normalised_probability",
    "ratio_open_unlearning",
]

Side = Literal["forget", "other"]
"""Whether the row belongs to what is forgotten or to what is kept."""

TruthRatio = Callable[[float, Sequence[float], Side], float]
"""A convention: (NLL of the base answer, NLLs of the wrong answers, both in nats a token, side) -> score in [0, 1]."""

_OPEN_UNLEARNING_EPSILON = 1e-10


def _check(wrong: Sequence[float]) -> None:
    if not wrong:
        raise DataError("a truth ratio needs at least one wrong answer, got none; give the record `perturbed_answer`")


def log_ratio_arithmetic(base: float, wrong: Sequence[float]) -> float:
    """Return ln R with the arithmetic mean of the wrong answers' probabilities, from NLLs in nats a token.

    Raises:
        DataError: there is no wrong answer.
    """
    _check(wrong)
    return float(logsumexp([-nll for nll in wrong])) - math.log(len(wrong)) + base


def log_ratio_geometric(base: float, wrong: Sequence[float]) -> float:
    """Return ln R with the geometric mean of the wrong answers' probabilities, from NLLs in nats a token.

    Raises:
        DataError: there is no wrong answer.
    """
    _check(wrong)
    return base - math.fsum(wrong) / len(wrong)


def _alike(log_ratio: float) -> float:
    """min(R, 1/R): 1 where right and wrong answers are equally likely."""
    return math.exp(-abs(log_ratio))


def _better(log_ratio: float) -> float:
    """max(0, 1 - R): 1 where wrong answers are impossible, 0 where they are at least as likely."""
    return -math.expm1(min(0.0, log_ratio))


def truth_ratio_grun(base: float, wrong: Sequence[float], side: Side) -> float:  # noqa: ARG001 - one rule for both sides
    """GRUN's `eval_collect_results`: max(0, 1 - R) of the arithmetic R on either side."""
    return _better(log_ratio_arithmetic(base, wrong))


def truth_ratio_tofu_arithmetic(base: float, wrong: Sequence[float], side: Side) -> float:
    """TOFU's newer evaluation, on the arithmetic R."""
    log_ratio = log_ratio_arithmetic(base, wrong)
    return _alike(log_ratio) if side == "forget" else _better(log_ratio)


def truth_ratio_tofu_geometric(base: float, wrong: Sequence[float], side: Side) -> float:
    """TOFU's aggregation as of the paper, on the geometric R."""
    log_ratio = log_ratio_geometric(base, wrong)
    return _alike(log_ratio) if side == "forget" else _better(log_ratio)


def ratio_open_unlearning(base: float, wrong: Sequence[float]) -> float:
    """Return open-unlearning's R: geometric, with 1e-10 added to P(base). Its forget quality compares these.

    Raises:
        DataError: there is no wrong answer.
    """
    _check(wrong)
    return math.exp(-math.fsum(wrong) / len(wrong)) / (math.exp(-base) + _OPEN_UNLEARNING_EPSILON)


def truth_ratio_closer_to_1_better(base: float, wrong: Sequence[float], side: Side) -> float:  # noqa: ARG001 - on any set
    """open-unlearning's `closer_to_1_better`: min(R, 1 / (R + 1e-10))."""
    ratio = ratio_open_unlearning(base, wrong)
    return min(ratio, 1 / (ratio + _OPEN_UNLEARNING_EPSILON))


def truth_ratio_true_better(base: float, wrong: Sequence[float], side: Side) -> float:  # noqa: ARG001 - on any set
    """open-unlearning's `true_better`: max(0, 1 - R)."""
    return max(0.0, 1 - ratio_open_unlearning(base, wrong))


def truth_ratio_prob_mean(base: float, wrong: Sequence[float], side: Side) -> float:  # noqa: ARG001 - on any set
    """open-unlearning's `prob_mean`: P(base) / (P(base) + P(wrong) + 1e-10), P(wrong) the geometric mean."""
    _check(wrong)
    right = math.exp(-base)
    return right / (right + math.exp(-math.fsum(wrong) / len(wrong)) + _OPEN_UNLEARNING_EPSILON)


TRUTH_RATIOS: Mapping[str, TruthRatio] = {
    "truth_ratio_grun": truth_ratio_grun,
    "truth_ratio_tofu_arithmetic": truth_ratio_tofu_arithmetic,
    "truth_ratio_tofu_geometric": truth_ratio_tofu_geometric,
    "truth_ratio_closer_to_1_better": truth_ratio_closer_to_1_better,
    "truth_ratio_true_better": truth_ratio_true_better,
    "truth_ratio_prob_mean": truth_ratio_prob_mean,
}
"""Every convention by its metric name; a set's score is the mean over its rows."""

FALLS_WHEN_FORGOTTEN = frozenset({"truth_ratio_grun", "truth_ratio_true_better", "truth_ratio_prob_mean"})
"""Conventions whose score falls as a forget set is forgotten, because the right answer stands out less."""

LOW_WHEN_KEPT = frozenset({"truth_ratio_closer_to_1_better"})
"""Conventions that are low where right and wrong answers are told apart, which a set that is kept should be."""


def normalised_probability(answer: float, wrong: Sequence[float]) -> float:
    """Return P(answer) / (P(answer) + sum_k P(wrong_k)), from NLLs in nats a token.

    Raises:
        DataError: there is no wrong answer.
    """
    _check(wrong)
    return math.exp(-answer - float(logsumexp([-answer, *(-nll for nll in wrong)])))
