"""What a stack does at one block: screen all gates at once, and run the members that might be open on their own.

A member that runs is its own code on all rows, so its bits are those it has alone. A member is left out only where
every row's logit lies below its threshold by more than rounding could make up for (:mod:`grun.gates.batched`); so a
stack of many closed members costs one batched computation of their gates.

Shapes: B rows, D hidden size, K gates.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from grun.config import CompositionConfig
from grun.gates import BatchedGates
from grun.interventions.composition import compose
from grun.interventions.gated import Edited, GatedIntervention

__all__ = ["StackedInterventions"]


class StackedInterventions(nn.Module):
    """The interventions of a stack's members at one block, in order."""

    def __init__(
        self,
        interventions: Sequence[GatedIntervention],
        thresholds: Sequence[float | None],
        composition: CompositionConfig,
        *,
        num_members: int,
    ) -> None:
        """Stack interventions at one block.

        Args:
            thresholds: gate threshold of each; None leaves its gate soft.
            num_members: of the whole stack, at whatever block they edit.
        """
        super().__init__()
        # in a tuple, not registered: the stack holds them once, by member
        self.interventions = tuple(interventions)
        self.thresholds = tuple(thresholds)
        self.composition = composition
        self.num_members = num_members
        self.gated = [index for index, gated in enumerate(interventions) if gated.gate.learns]
        groups: dict[tuple[torch.Size, ...], list[int]] = {}
        for index in self.gated:
            shapes = tuple(linear.weight.shape for linear in interventions[index].gate.linears())
            groups.setdefault(shapes, []).append(index)
        self.groups = list(groups.values())
        self.screens = nn.ModuleList([BatchedGates([interventions[index].gate for index in group]) for group in self.groups])

    def forward(self, h: Tensor, *, threshold: float | None = None) -> Edited:
        """Edit rows h (B, D).

        Args:
            threshold: takes the place of every member's own; None leaves each its own.
        """
        wide = h.float()
        thresholds = self.thresholds if threshold is None else (threshold,) * len(self.interventions)
        logits, running = self._screen(wide, thresholds)
        changes = []
        for index in running:
            change = self.interventions[index].change(wide, threshold=thresholds[index])
            logits[:, index] = change.gate_logits
            changes.append(change)
        gate_logits = logits[:, self.gated] if self.gated else None
        if not changes:
            return Edited(h, gate_logits)
        is_open = torch.stack([change.is_open for change in changes]).any(0)
        edited = (wide + compose(changes, self.composition, num_members=self.num_members)).to(h.dtype)
        return Edited(torch.where(is_open.unsqueeze(-1), edited, h), gate_logits)

    def _screen(self, wide: Tensor, thresholds: Sequence[float | None]) -> tuple[Tensor, list[int]]:
        """Gate logits (B, interventions) and which interventions a row of h might open."""
        logits = torch.full((len(wide), len(self.interventions)), torch.inf, device=wide.device)
        running = set(range(len(self.interventions))) - set(self.gated)
        for group, screen in zip(self.groups, self.screens, strict=True):
            screened = cast(BatchedGates, screen)(wide)
            logits[:, group] = screened.logits
            least = torch.tensor([_least_logit(thresholds[index]) for index in group], device=wide.device)
            # not "at least": a logit that is no number is for its own gate to judge
            may_open = ~(screened.logits + screened.margin < least).all(0)
            running.update(index for index, may in zip(group, may_open.tolist(), strict=True) if may)
        return logits, sorted(running)


def _least_logit(threshold: float | None) -> float:
    """A logit that no open gate lies below, whatever the rounding of its sigmoid and of comparing."""
    if threshold is None:
        return -math.inf
    if threshold > 1:
        return math.inf
    least = threshold * (1 - 2.0**-16)
    return math.log(least) - math.log1p(-least) if least > 0 else -math.inf
