"""Compositions: the changes that several interventions would make to a row, made one.

A change that is closed contributes -0.0, the one number that leaves every other as it is when added (adding +0.0
makes +0.0 of -0.0). So rows where one member alone is open get that member's change bit for bit.

Shapes: B rows, D hidden size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grun.config import CompositionConfig, Config, MaxGateConfig, ScaledConfig, SumConfig
from grun.interventions.gated import Change

__all__ = ["COMPOSITIONS", "compose"]


def _sum(changes: Sequence[Change], _config: SumConfig, _num_members: int) -> Tensor:
    total = _nothing(changes[0])
    for change in changes:
        total = total + torch.where(change.is_open.unsqueeze(-1), change.amount, -0.0)
    return total


def _max_gate(changes: Sequence[Change], _config: MaxGateConfig, _num_members: int) -> Tensor:
    total, best = _nothing(changes[0]), torch.full_like(changes[0].values, -1.0)
    for change in changes:
        better = change.is_open & (change.values > best)  # the earlier one where two are equal
        total = torch.where(better.unsqueeze(-1), change.amount, total)
        best = torch.where(better, change.values, best)
    return total


def _scaled(changes: Sequence[Change], config: ScaledConfig, num_members: int) -> Tensor:
    return (config.a * num_members + config.b) * _sum(changes, SumConfig(), num_members)


COMPOSITIONS: dict[type[Config], Callable[[Sequence[Change], Any, int], Tensor]] = {
    SumConfig: _sum,
    MaxGateConfig: _max_gate,
    ScaledConfig: _scaled,
}
"""What each kind makes of changes, one at least, in a stack of so many members."""


def compose(changes: Sequence[Change], composition: CompositionConfig, *, num_members: int) -> Tensor:
    """Return the change (B, D) in float32 that changes amount to.

    Args:
        changes: one at least, in the order of the stack; members that are closed in every row may be left out.
        num_members: N, of the whole stack.
    """
    return COMPOSITIONS[type(composition)](changes, composition, num_members)


def _nothing(change: Change) -> Tensor:
    return torch.full_like(change.amount, -0.0)
