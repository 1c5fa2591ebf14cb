"""WGA, weighted gradient ascent: climb the cross-entropy of the answers to forget, each token as far as it is known.

    L = -(1/N) sum_t p_t^beta nll_t          over the N forget answer tokens, p_t = exp(-nll_t), the weight a constant

Its gradient is that of the mean of p^beta / beta, which is bounded: a token that is forgotten is left alone. The value
itself may rise meanwhile, as weights move. Source: arXiv:2502.19301.
"""

import torch
from torch import Tensor

from grun.config import WgaConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["wga"]


def wga(inputs: ObjectiveInputs, config: WgaConfig) -> Tensor:
    """Return minus the weighted mean cross-entropy of the forget answer tokens, a scalar in nats."""
    nll = inputs.forget.nll.float()
    weight = torch.exp(-config.beta * nll.detach())
    return -(weight * nll).sum() / inputs.totals.forget_tokens
