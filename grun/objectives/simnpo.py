"""SimNPO, simple negative preference optimisation: make answers to forget unlikely, whatever the reference finds of them.

    L = -(2/beta) mean_i log sigmoid(beta (NLL_i / n_i - gamma))          over the forget sequences i of n_i tokens

Taken a token, so that long answers do not pass for unlikely ones. Falls to 0, and its gradient with it.
Source: arXiv:2410.07163.
"""

import torch.nn.functional as F
from torch import Tensor

from grun.config import SimNpoConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["simnpo"]


def simnpo(inputs: ObjectiveInputs, config: SimNpoConfig) -> Tensor:
    """Return the mean over forget sequences, a scalar."""
    mean_nll = inputs.forget.sequence_nll() / inputs.forget.sequence_lengths()
    return -2 / config.beta * F.logsigmoid(config.beta * (mean_nll - config.gamma)).sum() / inputs.totals.forget_rows
