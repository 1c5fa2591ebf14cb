"""What the gates of an adapter read: one forward pass over prompts, and no generation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from grun.data.prompts import Example
from grun.interventions import Adapter
from grun.lm import Pass

__all__ = ["read_gates"]


@torch.no_grad()
def read_gates(base: Pass, rows: Sequence[Example], adapter: Adapter, *, threshold: float | None, batch_size: int) -> Tensor:
    """Return the gate values (rows, L) at the last prompt token, in order, as float32 on the CPU.

    Args:
        rows: prompts with one answer token at least; more of them cost time and change nothing (:meth:`Example.shortened`).
        threshold: gate threshold of the edits at earlier blocks; None leaves gates soft.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    values = torch.empty(len(rows), len(adapter.layers))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        logits = base.answers([rows[index] for index in chosen], adapter, threshold=threshold).gate_logits
        assert logits is not None
        values[chosen] = logits.float().sigmoid().cpu()
    return values
