"""Divergence from the reference on the answers to keep.

    L = (1/N) sum_t KL(p_ref,t || p_t)          over the N retain answer tokens

A token mean: prompts and padding, on which nothing may or can change, do not dilute it.

Shapes: N answer tokens, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

from grun.config import RetainKlConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["retain_kl"]


def retain_kl(inputs: ObjectiveInputs, _config: RetainKlConfig) -> Tensor:
    """Return the mean divergence per answer token, a scalar in nats; needs logits (N, V) of both models."""
    logits, logits_ref = inputs.retain.logits, inputs.retain.logits_ref
    assert logits is not None
    assert logits_ref is not None
    log_p = F.log_softmax(logits.float(), dim=-1)
    log_p_ref = F.log_softmax(logits_ref.float(), dim=-1)
    return F.kl_div(log_p, log_p_ref, reduction="sum", log_target=True) / inputs.totals.retain_tokens
