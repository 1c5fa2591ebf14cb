"""UNDIAL, self-distillation with adjusted logits: learn what the reference would say if it believed less in the answer.

    L = (1/N) sum_t CE(softmax(z_ref,t - beta e_y), z_t)          over the N forget answer tokens, y the token itself

The target is a constant and the loss bounded, so training has somewhere to arrive. Source: arXiv:2402.10052.

Shapes: N answer tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from grun.config import UndialConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["undial"]


def undial(inputs: ObjectiveInputs, config: UndialConfig) -> Tensor:
    """Return the mean cross-entropy to the adjusted distribution, a scalar in nats; needs logits (N, V) of both models."""
    logits, logits_ref, targets = inputs.forget.logits, inputs.forget.logits_ref, inputs.forget.targets
    assert logits is not None
    assert logits_ref is not None
    assert targets is not None
    lowered = torch.full_like(logits_ref[:, :1], -config.beta, dtype=torch.float32)
    adjusted = logits_ref.float().scatter_add(1, targets.unsqueeze(1), lowered)
    return F.cross_entropy(logits.float(), adjusted.softmax(dim=-1), reduction="sum") / inputs.totals.forget_tokens
