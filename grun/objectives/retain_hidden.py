"""Distance from the reference's hidden states on the answers to keep.

    L = mean over tokens t and features of (H_t - H_ref,t)^2          over the retain answer tokens

The companion of RMU. Source: arXiv:2403.03218, whose loss is D times this mean.

Shapes: N answer tokens, D hidden size.
"""

from torch import Tensor

from grun.config import RetainHiddenConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["retain_hidden"]


def retain_hidden(inputs: ObjectiveInputs, _config: RetainHiddenConfig) -> Tensor:
    """Return the mean squared distance, a scalar; needs hidden states (N, D) of both models."""
    hidden, hidden_ref = inputs.retain.hidden, inputs.retain.hidden_ref
    assert hidden is not None
    assert hidden_ref is not None
    return (hidden.float() - hidden_ref.float()).square().sum() / (inputs.totals.retain_tokens * hidden.shape[-1])
