"""Full fine-tuning: every weight of a copy of the base learns.

Published for unlearning at 8B with learning rate 1e-5, weight decay 0.01, 10 epochs and a warm-up of one
(arXiv:2502.17823, arXiv:2401.06121).
"""

from grun.compared.base import ChangedBase, copied
from grun.lm import FrozenLM

__all__ = ["full_fine_tuning"]


def full_fine_tuning(lm: FrozenLM) -> ChangedBase:
    """Return a base of which every weight learns; the given one stays as it is."""
    copy, model = copied(lm)
    model.requires_grad_(True)
    return ChangedBase(copy, lm)
