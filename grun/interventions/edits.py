"""What acts on a base: an adapter or a stack of them, as the intervened model sees it.

Shapes: B rows, D hidden size, L columns of gates.
"""

from typing import Protocol

from torch import Tensor

from grun.interventions.gated import Edited

__all__ = ["BlockEdit", "Edits"]


class BlockEdit(Protocol):
    """What is done at one block."""

    def __call__(self, h: Tensor, *, threshold: float | None = None) -> Edited:
        """Edit rows h (B, D)."""
        ...


class Edits(Protocol):
    """What is done at several."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that it edits, shallowest first."""
        ...

    @property
    def gated_layers(self) -> tuple[int, ...]:
        """Those of them that have gate logits."""
        ...

    def at(self, layer: int) -> BlockEdit:
        """What is done at a block."""
        ...

    def opened(self, gate_logits: Tensor, threshold: float | None) -> Tensor | None:
        """Return (B,) where a gate reaches its threshold, from all gate logits (B, L); None where gates are soft."""
        ...
