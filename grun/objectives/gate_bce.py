"""The gate term: gates learn to open for prompts to forget and to stay closed for the others.

    L = -[ sum_forget log g + sum_retain log(1 - g) ] / ((B_forget + B_retain) L)

One plain mean over all rows and blocks, g = sigmoid(u). Taken from the logits u in float32: the log of a saturated
sigmoid loses value and gradient. Source: arXiv:2502.17823.

Shapes: B rows, L intervened blocks.
"""

import torch.nn.functional as F
from torch import Tensor

from grun.objectives.base import ObjectiveInputs

__all__ = ["gate_bce"]


def gate_bce(inputs: ObjectiveInputs) -> Tensor:
    """Return the mean binary cross-entropy of the gates, a scalar in nats."""
    forget, retain, totals = inputs.gate_logits_forget, inputs.gate_logits_retain, inputs.totals
    assert forget is not None
    assert retain is not None
    assert forget.shape[1:] == retain.shape[1:]
    log_likelihood = F.logsigmoid(forget.float()).sum() + F.logsigmoid(-retain.float()).sum()
    return -log_likelihood / ((totals.forget_rows + totals.retain_rows) * forget.shape[1])
