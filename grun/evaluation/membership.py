"""Membership inference: can rows that a model was trained on be told from rows that it never saw? As in open-unlearning.

| attack | score of a row, low for what the model knows |
|---|---|
| `loss` (Yeom et al. 2018) | NLL of the answer in nats a token |
| `zlib` (Carlini et al. 2021) | that, divided by the bytes of the answer's text under zlib |
| `min_k` (Shi et al. 2024) | mean NLL of the 40 % of answer tokens that are least likely |
| `min_k_plus_plus` (Zhang et al. 2025) | minus the mean of the lowest 40 % of z_t = (ln p_t - mu_t) / sigma_t, mu_t and sigma_t the \
mean and standard deviation of ln p over the vocabulary under p |
| `reference` (Carlini et al. 2022) | NLL of the answer minus that under a reference model, here the retain-only one |

    AUC      = P(score of a non-member > score of a forget row) + P(equal) / 2
    privleak = 100 ((1 - AUC) - (1 - AUC_retain)) / (1 - AUC_retain + 1e-10)      AUC of `min_k`, of the model and the retain-only one

AUC is 1 where forget rows stand out as known, 1/2 where nothing tells the two apart, 0 where forget rows stand out as
*unknown*, which gives them away as well. A privleak below 0 is under-unlearning (the forget rows still stand out), one
above 0 over-unlearning. Facts checked in the source of open-unlearning: members are the forget set, k is 0.4 in its TOFU
settings, min-k leaves the end of text out while the loss has it, sigma^2 is at least 1e-6, privleak rests on `min_k`.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np

from grun.errors import DataError

__all__ = ["MIN_K_SHARE", "lowest_mean", "membership_auc", "num_lowest", "privleak", "zlib_bytes"]

MIN_K_SHARE = 0.4
"""Share of the answer tokens that min-k and min-k++ look at."""

_PRIVLEAK_EPSILON = 1e-10


def num_lowest(num_tokens: int, share: float = MIN_K_SHARE) -> int:
    """How many of the tokens are looked at: the share rounded down, at least one."""
    return max(1, int(num_tokens * share))


def lowest_mean(values: Sequence[float], share: float = MIN_K_SHARE) -> float:
    """Return the mean of the lowest values.

    Raises:
        DataError: there is no value.
    """
    if not values:
        raise DataError("min-k is a mean over answer tokens, got none beside the end of text; mend or drop the record")
    lowest = sorted(values)[: num_lowest(len(values), share)]
    return math.fsum(lowest) / len(lowest)


def zlib_bytes(text: str) -> int:
    """Return the length of a text under zlib, in bytes."""
    return len(zlib.compress(text.encode()))


def membership_auc(forget: Sequence[float], nonmembers: Sequence[float]) -> float:
    """Return how well the scores tell forget rows (low) from rows that no model ever saw (high): 1/2 is not at all.

    Raises:
        DataError: one of the two holds no row, or a score is not finite.
    """
    for name, scores in (("forget", forget), ("never-seen", nonmembers)):
        if not len(scores) or not all(map(math.isfinite, scores)):
            raise DataError(
                f"membership inference needs finite scores of both sets, got {list(scores)[:5]} of the {name} rows; score them again"
            )
    from sklearn.metrics import roc_auc_score  # half a second, which processes that only train do not need

    labels = np.repeat([0, 1], [len(forget), len(nonmembers)])
    return float(roc_auc_score(labels, np.concatenate([forget, nonmembers])))


def privleak(auc: float, retain_only_auc: float) -> float:
    """Return by how much forget rows stand out less (above 0) or more (below 0) than in a model that never saw them, in per cent.

    Where the retain-only model's AUC is 1 there is no distance to be a share of: the value is then huge, and says so.
    """
    hidden, reference = 1 - auc, 1 - retain_only_auc
    return 100 * (hidden - reference) / (reference + _PRIVLEAK_EPSILON)
