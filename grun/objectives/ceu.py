"""CE-U, cross-entropy unlearning: learn the model's own distribution without the true token.

    L = (1/N) sum_t CE(softmax(z_t with z_y = -inf), z_t)          over the N forget answer tokens, y the token itself

The target is taken as a constant, so the gradient is p - q with q the p of the other tokens: it vanishes with p_y and
is never larger than p_y. Source: arXiv:2503.01224.

Shapes: N answer tokens, V vocabulary.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from grun.config import CeuConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["ceu"]


def ceu(inputs: ObjectiveInputs, _config: CeuConfig) -> Tensor:
    """Return the mean cross-entropy to the own distribution without the token, a scalar in nats; needs logits (N, V)."""
    logits, targets = inputs.forget.logits, inputs.forget.targets
    assert logits is not None
    assert targets is not None
    without = logits.detach().float().scatter(1, targets.unsqueeze(1), -math.inf)
    return F.cross_entropy(logits.float(), without.softmax(dim=-1), reduction="sum") / inputs.totals.forget_tokens
