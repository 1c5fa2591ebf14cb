"""NPO, negative preference optimisation: make answers to forget less likely than the reference finds them.

    L = -(2/beta) mean_i log sigmoid(beta (NLL_i - NLL_ref,i))          over the forget sequences i

NLL_i is summed over the tokens of sequence i. At the reference L = (2/beta) log 2; it falls to 0 as the answers become
unlikely, and its gradient vanishes with it. Source: arXiv:2404.05868.
"""

import torch.nn.functional as F
from torch import Tensor

from grun.config import NpoConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["npo"]


def npo(inputs: ObjectiveInputs, config: NpoConfig) -> Tensor:
    """Return the mean over forget sequences, a scalar; needs the reference's cross-entropy."""
    excess = inputs.forget.sequence_nll() - inputs.forget.sequence_nll_ref()
    return -2 / config.beta * F.logsigmoid(config.beta * excess).sum() / inputs.totals.forget_rows
