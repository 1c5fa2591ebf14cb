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

__all__ = ["Edited", "GatedIntervention"]


class Edited(NamedTuple):
    """What an intervention did to the rows it was shown."""

    hidden: Tensor
    """(B, D) hidden states in the dtype they came in."""
    gate_logits: Tensor | None
    """(B,) u(h) in float32; None where there is no gate."""


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
        logits = self.gate.logits(wide)
        values = apply_threshold(logits.sigmoid(), threshold)
        edited = (wide + values.unsqueeze(-1) * self.intervention.edit(wide)).to(h.dtype)
        if threshold is not None:
            edited = torch.where((values > 0).unsqueeze(-1), edited, h)
        return Edited(edited, logits if self.gate.learns else None)
