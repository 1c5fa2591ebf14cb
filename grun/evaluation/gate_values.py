"""What the gates of an adapter read: one forward pass over prompts, and no generation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from grun.data.prompts import Example
from grun.interventions import Edits
from grun.lm import Pass

__all__ = ["read_gates"]


@torch.no_grad()
def read_gates(base: Pass, rows: Sequence[Example], adapter: Edits, *, threshold: float | None, batch_size: int) -> Tensor:
    """Return the gate values (rows, L) at the last prompt token, in order, as float32 on the CPU; L as in :class:`Answers`.

    Args:
        rows: prompts with one answer token at least; more of them cost time and change nothing (:meth:`Example.shortened`).
        threshold: gate threshold of the edits at earlier blocks, as of :class:`IntervenedLM`.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    values: list[Tensor] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        logits = base.answers([rows[index] for index in chosen], adapter, threshold=threshold).gate_logits
        assert logits is not None
        values.append(logits.float().sigmoid().cpu())
    return torch.cat(values)[torch.tensor(order).argsort()]
