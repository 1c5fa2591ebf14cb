"""SatImp: climb the cross-entropy of the answers to forget, with most weight on tokens that are known but not by heart.

    L = -(1/N) sum_t p_t^beta1 (1 - p_t)^beta2 nll_t          over the N forget answer tokens, the weight a constant

p_t = exp(-nll_t). p^beta1 is a token's saturation: what is forgotten is left alone. (1 - p)^beta2 is its importance: what
follows from the words before it is certain whatever one knows. Source: arXiv:2505.11953.
"""

import torch
from torch import Tensor

from grun.config import SatImpConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["satimp"]


def satimp(inputs: ObjectiveInputs, config: SatImpConfig) -> Tensor:
    """Return minus the weighted mean cross-entropy of the forget answer tokens, a scalar in nats."""
    nll = inputs.forget.nll.float()
    constant = nll.detach()
    # expm1: near certainty, 1 - p would be rounded away
    weight = torch.exp(-config.beta1 * constant) * (-torch.expm1(-constant)).pow(config.beta2)
    return -(weight * nll).sum() / inputs.totals.forget_tokens
