"""IDK, "I don't know": learn to answer the prompts to forget with a refusal.

    L = (1/N) sum_t nll_t          over the N tokens of the refusals

Source: arXiv:2401.06121. The forget sub-batch already holds refusals in place of its answers.
"""

from torch import Tensor

from grun.config import IdkConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["idk"]


def idk(inputs: ObjectiveInputs, _config: IdkConfig) -> Tensor:
    """Return the mean cross-entropy of the refusal tokens, a scalar in nats."""
    return inputs.forget_nll()
