"""DPO, direct preference optimisation: prefer another answer to the one to forget. AltPO where that is an alternative.

    L = -(2/beta) mean_i log sigmoid(beta [(NLL_i - NLL_ref,i) - (NLL_w,i - NLL_ref,w,i)])          over the forget rows i

w is the preferred answer to the same prompt, a refusal or an alternative. At the reference L = (2/beta) log 2. The
factor 2 is a habit of unlearning, where it makes NPO the special case without w. Sources: arXiv:2305.18290, and
arXiv:2409.13474 for AltPO.
"""

import torch.nn.functional as F
from torch import Tensor

from grun.config import DpoConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["dpo"]


def dpo(inputs: ObjectiveInputs, config: DpoConfig) -> Tensor:
    """Return the mean over forget rows, a scalar; needs the preferred answers and the reference's cross-entropy of both."""
    forget, preferred = inputs.forget, inputs.preferred
    assert preferred is not None
    excess = forget.sequence_nll() - forget.sequence_nll_ref()
    preferred_excess = preferred.sequence_nll() - preferred.sequence_nll_ref()
    return -2 / config.beta * F.logsigmoid(config.beta * (excess - preferred_excess)).sum() / inputs.totals.forget_rows
