"""How well the gates tell prompts about the forget set from ordinary ones.

    AUROC            = P(gate value on forget > on ordinary) + P(equal) / 2
    open rate        = share of prompts at which a gate value reaches the threshold
    false-open rate  = open rate on ordinary prompts; where no gate opens, the output is the base's, bit for bit
    recall           = open rate on forget prompts
    upper bound      = Clopper-Pearson: the rate at which so few openings would be seen with probability 1 - confidence

Gate values: (prompts, layers), in [0, 1].
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grun.errors import DataError

__all__ = ["GateAuroc", "OpenRates", "clopper_pearson_upper", "gate_auroc", "open_rates"]


@dataclass(frozen=True)
class GateAuroc:
    """Areas under the ROC curve, forget prompts against ordinary ones."""

    largest: float
    """Of the largest gate value over the layers, which decides whether anything opens."""
    per_layer: tuple[float, ...]
    """Of each layer alone."""


@dataclass(frozen=True)
class OpenRates:
    """Shares of prompts at which a gate opens."""

    any: float
    """At any layer."""
    per_layer: tuple[float, ...]
    """At each layer."""


def _matrix(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(
            f"gate values must be a table of (prompts, layers) with at least one of each, got shape {array.shape} for the "
            f"{name} prompts; score them with an adapter"
        )
    return array


def _auroc(forget: NDArray[np.float64], ordinary: NDArray[np.float64]) -> float:
    from sklearn.metrics import roc_auc_score  # half a second, which processes that only train do not need

    labels = np.repeat([1, 0], [len(forget), len(ordinary)])
    return float(roc_auc_score(labels, np.concatenate([forget, ordinary])))


def gate_auroc(forget: ArrayLike, ordinary: ArrayLike) -> GateAuroc:
    """Compare the gate values (prompts, layers) of forget prompts with those of ordinary ones.

    Raises:
        DataError: a table is empty, or the two have different numbers of layers.
    """
    positive, negative = _matrix(forget, "forget"), _matrix(ordinary, "ordinary")
    if positive.shape[1] != negative.shape[1]:
        raise DataError(
            f"forget and ordinary prompts must be scored with one adapter, got gate values of {positive.shape[1]} and "
            f"{negative.shape[1]} layers; score them again"
        )
    per_layer = tuple(_auroc(f, o) for f, o in zip(positive.T, negative.T, strict=True))
    return GateAuroc(_auroc(positive.max(axis=1), negative.max(axis=1)), per_layer)


def open_rates(values: ArrayLike, threshold: float | None) -> OpenRates:
    """Return how often gates open at a threshold; without one, soft gates are never fully closed: 1.

    Args:
        values: gate values (prompts, layers).

    Raises:
        DataError: the table is empty.
    """
    table = _matrix(values, "scored")
    # in the model's own precision, so that a value at the threshold opens here exactly where it opens there
    opened = table.astype(np.float32) >= np.float32(0.0 if threshold is None else threshold)
    return OpenRates(float(opened.any(axis=1).mean()), tuple(opened.mean(axis=0).tolist()))


def clopper_pearson_upper(num_open: int, num_prompts: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided exact upper confidence bound of a rate, for independent prompts.

    Raises:
        DataError: there are no prompts.
    """
    if num_prompts < 1:
        raise DataError(f"a bound on a rate needs at least one prompt, got {num_prompts}; score the holdout set")
    assert 0 <= num_open <= num_prompts
    from scipy.stats import beta  # as above

    return 1.0 if num_open == num_prompts else float(beta.ppf(confidence, num_open + 1, num_prompts - num_open))
