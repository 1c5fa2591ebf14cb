"""No gate: always open, so that LoReFT is applied as it was published.

    u(h) = infinity          g(h) = sigmoid(u(h)) = 1

A gate value of 1 reaches every threshold, and 1 times the edit is the edit, bit for bit. Source: Wu et al. 2024,
arXiv:2404.03592.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grun.gates.base import AbstractGate

__all__ = ["NoGate"]


class NoGate(AbstractGate):
    """u(h) = infinity; no parameter and no state."""

    learns = False

    def __init__(self, hidden_size: int) -> None:  # noqa: ARG002 - every gate is built from the hidden size
        super().__init__()

    def logits(self, h: Tensor) -> Tensor:
        """Return infinity (...) for h (..., D)."""
        return torch.full(h.shape[:-1], torch.inf, dtype=torch.float32, device=h.device)

    def linears(self) -> Sequence[nn.Linear]:
        """Return nothing: there is nothing to compute."""
        return ()
