"""The linear gate, one hyperplane in the hidden space.

    u(h) = w h + b

Source: arXiv:2502.17823, the default there. Shapes: w (1, D), b (1,).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from grun.gates.base import AbstractGate

__all__ = ["LinearGate"]


class LinearGate(AbstractGate):
    """u(h) = w h + b; its state is `linear.weight` (1, D) and `linear.bias` (1,)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)

    def logits(self, h: Tensor) -> Tensor:
        """Return u(h) (...) for h (..., D)."""
        logits: Tensor = self.linear(h.float())
        return logits.squeeze(-1)

    def linears(self) -> Sequence[nn.Linear]:
        """Return its one layer."""
        return (self.linear,)
