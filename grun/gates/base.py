"""What every gate is: a map from a hidden state to one logit.

    g(h) = sigmoid(u(h))          u(h): the gate logit, g(h): the gate value

Training needs u(h), because the binary cross-entropy of a saturated g(h) has no gradient left; so a gate returns
logits and its user applies the sigmoid. Source: arXiv:2502.17823.

Shapes: D hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

__all__ = ["AbstractGate"]


class AbstractGate(nn.Module, ABC):
    """A gate. Its parameters are float32 and start as PyTorch initialises them, so that gate values start near 0.5."""

    learns: ClassVar[bool] = True
    """Whether there is anything to learn; logits of a gate without parameters are shown to no objective and no metric."""

    @abstractmethod
    def logits(self, h: Tensor) -> Tensor:
        """Return u(h) in float32, of shape (...), for hidden states h (..., D) of any floating dtype."""

    @abstractmethod
    def linears(self) -> Sequence[nn.Linear]:
        """Return the linear layers that u(h) is, with ReLU between them; none where u(h) is infinity."""
