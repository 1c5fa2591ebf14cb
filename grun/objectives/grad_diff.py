"""GD, gradient difference: climb the cross-entropy of the answers to forget.

    L = -(1/N) sum_t nll_t          over the N forget answer tokens

Source: arXiv:2502.17823; gradient difference goes back to arXiv:2203.12817. Unbounded below.
"""

from torch import Tensor

from grun.config import GradDiffConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["grad_diff"]


def grad_diff(inputs: ObjectiveInputs, _config: GradDiffConfig) -> Tensor:
    """Return minus the mean cross-entropy of the forget answer tokens, a scalar in nats."""
    return -inputs.forget_nll()
