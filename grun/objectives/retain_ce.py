"""Cross-entropy of the answers to keep.

L = (1/N) sum_t nll_t          over the N retain answer tokens
"""

from torch import Tensor

from grun.config import RetainCeConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["retain_ce"]


def retain_ce(inputs: ObjectiveInputs, _config: RetainCeConfig) -> Tensor:
    """Return the mean cross-entropy of the retain answer tokens, a scalar in nats."""
    return inputs.retain_nll()
