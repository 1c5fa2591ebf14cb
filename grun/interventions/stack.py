"""The adapter stack: the adapters of several requests on one base, in the order in which they came.

    h' = h + sum_i g_i(h) edit_i(h)          or another composition of the same changes

At each block every member reads the h that reaches the block, before any edit there; so no member's gate depends on
who else edits this block. Across blocks they meet, as in :class:`Adapter`. What is exact, bit for bit:

* with `sum`, a stack of one is its member;
* with `sum` and `max_gate`, a row where one member's gates alone are open is that member's row, so that adding or
  revoking others changes nothing there; a closed member adds nothing at all, not even a zero;
* a row where no gate is open is the base's.

Source: arXiv:2502.17823 and its official code (`scaled`: 0.6 N + 0.6). Shapes: B rows, D hidden size, K gates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grun.config import CompositionConfig
from grun.interventions.adapter import Adapter
from grun.interventions.stacked import StackedInterventions

__all__ = ["AdapterStack", "StackMember"]


@dataclass(frozen=True)
class StackMember:
    """One request's part of a stack."""

    request_id: str
    adapter: Adapter
    """Its weights are final: what decides which gates might be open is made of them once."""
    threshold: float | None
    """Gate threshold; None leaves its gates soft."""


class AdapterStack(nn.Module):
    """Adapters in order, and how their changes become one. For inference: members are trained alone."""

    def __init__(self, members: Sequence[StackMember], composition: CompositionConfig) -> None:
        """Stack adapters for bases of one hidden size, one at least, each request once."""
        super().__init__()
        assert members, "a stack has a member"
        assert len({member.request_id for member in members}) == len(members), "a request is in a stack once"
        assert len({member.adapter.hidden_size for member in members}) == 1, "members edit one base"
        self.members = tuple(members)
        self.composition = composition
        self.adapters = nn.ModuleList([member.adapter for member in members])
        self.layers = tuple(sorted({layer for member in members for layer in member.adapter.layers}))
        self.blocks = nn.ModuleDict({str(layer): self._block(layer) for layer in self.layers})

    def _block(self, layer: int) -> StackedInterventions:
        here = [member for member in self.members if layer in member.adapter.layers]
        return StackedInterventions(
            [member.adapter.at(layer) for member in here],
            [member.threshold for member in here],
            self.composition,
            num_members=len(self.members),
        )

    def at(self, layer: int) -> StackedInterventions:
        """The interventions of a block."""
        block = self.blocks[str(layer)]
        assert isinstance(block, StackedInterventions)
        return block

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests that it answers for, in order."""
        return tuple(member.request_id for member in self.members)

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden states it edits."""
        return self.members[0].adapter.hidden_size

    @property
    def gated_layers(self) -> tuple[int, ...]:
        """The blocks where a member has a gate."""
        return tuple(sorted({layer for _request_id, layer in self.columns}))

    @property
    def columns(self) -> tuple[tuple[str, int], ...]:
        """(request id, block) of each column of gate logits: block after block, shallowest first, members in order."""
        return tuple(
            (member.request_id, layer) for layer in self.layers for member in self.members if layer in member.adapter.gated_layers
        )

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """Gate threshold of each of the :attr:`columns`; None where the gate is soft."""
        own = {member.request_id: member.threshold for member in self.members}
        return tuple(own[request_id] for request_id, _layer in self.columns)

    def opened(self, gate_logits: Tensor, threshold: float | None = None) -> Tensor | None:
        """Return (B,) where a gate reaches its threshold, from gate logits (B, K); None where a member's gates are soft.

        Args:
            threshold: takes the place of every member's own.
        """
        thresholds = self.thresholds if threshold is None else (threshold,) * gate_logits.shape[-1]
        if None in thresholds:
            return None
        return (gate_logits.sigmoid() >= torch.tensor(thresholds, device=gate_logits.device)).any(-1)

    def with_member(self, member: StackMember) -> "AdapterStack":
        """Return a stack with one more, the last; members' modules are shared."""
        return AdapterStack((*self.members, member), self.composition)

    def without(self, request_id: str) -> "AdapterStack":
        """Return the stack that others keep when a request is revoked; members' modules are shared."""
        assert request_id in self.request_ids, f"{request_id} is not in the stack"
        return AdapterStack([member for member in self.members if member.request_id != request_id], self.composition)
