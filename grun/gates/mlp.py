"""The gate as a multilayer perceptron, ReLU between its layers and nothing after the last.

    u(h) = A_n relu(... relu(A_1 h + a_1) ...) + a_n

Source: arXiv:2502.17823. `mlp_3` has widths D-256-64-1, `mlp_5` has D-1024-512-256-64-1.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from grun.gates.base import AbstractGate

__all__ = ["MlpGate"]


class MlpGate(AbstractGate):
    """Linear layers at the even indices of `layers`, ReLU at the odd ones: the layout of published checkpoints."""

    def __init__(self, hidden_size: int, widths: Sequence[int]) -> None:
        """Build len(widths) + 1 linear layers; `widths` are the hidden widths between D and 1."""
        super().__init__()
        self.layers = nn.Sequential()
        for fan_in, fan_out in pairwise((hidden_size, *widths)):
            self.layers.extend([nn.Linear(fan_in, fan_out), nn.ReLU()])
        self.layers.append(nn.Linear(widths[-1], 1))

    def logits(self, h: Tensor) -> Tensor:
        """Return u(h) (...) for h (..., D)."""
        logits: Tensor = self.layers(h.float())
        return logits.squeeze(-1)

    def linears(self) -> Sequence[nn.Linear]:
        """Return its layers, from D to 1."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]
