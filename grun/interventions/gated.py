"""The gated intervention of GRUN: any gate times the LoReFT edit.

    Phi(h) = h + g(h) edit(h)          g(h) = sigmoid(u(h)), 0 below the gate threshold

Source: arXiv:2502.17823. The gate reads the h that reaches its block, before this block's edit. A closed gate is the
identity bit for bit: the row is returned, not recomputed.

Shapes: B rows, D hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from grun.gates import AbstractGate
from grun.gates.threshold import apply_threshold
from grun.interventions.loreft import LoReFT

__all__ = ["Change", "Edited", "GatedIntervention"]


class Edited(NamedTuple):
    """What an intervention did to the rows it was shown."""

    hidden: Tensor
    """(B, D) hidden states in the dtype they came in."""
    gate_logits: Tensor | None
    """(B,) u(h) in float32, (B, K) of the K gates of a stack; None where there is no gate."""


class Change(NamedTuple):
    """What an intervention would add to the rows it was shown."""

    amount: Tensor
    """(B, D) g(h) edit(h) in float32."""
    values: Tensor
    """(B,) gate values, 0 below the threshold."""
    is_open: Tensor
    """(B,) where it acts at all; every row without a threshold."""
    gate_logits: Tensor
    """(B,) u(h) in float32."""


class GatedIntervention(nn.Module):
    """A gate around a LoReFT intervention, in float32 whatever the base computes in."""

    def __init__(self, gate: AbstractGate, intervention: LoReFT) -> None:
        super().__init__()
        self.gate = gate
        self.intervention = intervention

    def forward(self, h: Tensor, *, threshold: float | None = None) -> Edited:
        """Edit rows h (B, D).

        Args:
            threshold: a gate value below it counts as 0; None leaves the gate soft, as in training.
        """
        wide = h.float()
        change = self.change(wide, threshold=threshold)
        edited = (wide + change.amount).to(h.dtype)
        if threshold is not None:
            edited = torch.where(change.is_open.unsqueeze(-1), edited, h)
        return Edited(edited, change.gate_logits if self.gate.learns else None)

    def change(self, h: Tensor, *, threshold: float | None = None) -> Change:
        """Return what rows h (B, D) in float32 would be changed by; threshold as in :meth:`forward`."""
        logits = self.gate.logits(h)
        values = apply_threshold(logits.sigmoid(), threshold)
        is_open = torch.ones_like(values, dtype=torch.bool) if threshold is None else values > 0
        return Change(values.unsqueeze(-1) * self.intervention.edit(h), values, is_open, logits)
