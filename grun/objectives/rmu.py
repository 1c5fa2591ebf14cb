"""RMU, representation misdirection: push hidden states of the answers to forget towards a fixed random vector.

    L = mean over tokens t and features of (H_t - c u)^2          u = v / |v|, v uniform on [0, 1)^D

Source: arXiv:2403.03218, whose loss is D times this mean. H_t is read where answer token t is predicted, the last
prompt token included: there an answer begins.

Shapes: N answer tokens, D hidden size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from grun.config import RmuConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["direction", "rmu"]


def direction(seed: int, hidden_size: int) -> Tensor:
    """Return u (D,), float32 of length 1 with no negative entry; the same on every worker and device."""
    return F.normalize(torch.rand(hidden_size, generator=torch.Generator().manual_seed(seed)), dim=0)


def rmu(inputs: ObjectiveInputs, config: RmuConfig) -> Tensor:
    """Return the mean squared distance to c u, a scalar; needs hidden states."""
    hidden = inputs.forget.hidden
    assert hidden is not None
    target = config.coefficient * direction(config.seed, hidden.shape[-1]).to(hidden.device)
    return (hidden.float() - target).square().sum() / (inputs.totals.forget_tokens * hidden.shape[-1])
