"""LUNE's negative answers: learn to give another answer to the prompts to forget.

    L = (1/N) sum_t nll_t          over the N tokens of the alternative answers

Source: arXiv:2512.07375. The forget sub-batch already holds alternatives in place of its answers. They come from
`QARecord.alternative_answers`, never from the wrong answers by which the truth ratio judges.
"""

from torch import Tensor

from grun.config import NegativeConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["negative"]


def negative(inputs: ObjectiveInputs, _config: NegativeConfig) -> Tensor:
    """Return the mean cross-entropy of the tokens of alternative answers, a scalar in nats."""
    return inputs.forget_nll()
