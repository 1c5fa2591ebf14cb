"""LoReFT: move h inside a learned r-dimensional subspace and leave the rest alone.

    edit(h) = R (W h + b - R^T h)          R: D x r with orthonormal columns, W: r x D, b: r

Source: Wu et al. 2024, arXiv:2404.03592, and its place in GRUN, arXiv:2502.17823 (Eq. for Phi). This is pyreft's own
class, so that an adapter also runs inside `pyreft.get_reft_model`; what is ours is a state that is complete and strict.
pyreft saves the columns of R only and re-draws the rest of its basis on load, which is exact for inference but
breaks orthonormality as soon as training goes on. Here R is parametrized without that hidden basis (Householder map,
no trivialisation): its one tensor is all there is to save, and save, load and further training keep R orthonormal.

*Trap:* the Householder map reads a unit diagonal from the raw tensor; weight decay shrinks it, the map then casts it
to an integer zero, and R collapses. So the raw tensor must be excluded from weight decay (`NO_DECAY`).

Shapes: D hidden size, r rank, leading axes free.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from grun.interventions._pyreft import LoreftIntervention, LowRankRotateLayer

__all__ = ["NO_DECAY", "LoReFT"]

NO_DECAY = "rotate_layer"
"""Parameters whose name contains this must not be decayed."""


class LoReFT(LoreftIntervention):  # type: ignore[misc] # pyreft ships no types
    """The low-rank edit of one block's output, in float32."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        """Draw R orthonormal and W, b by torch's default for linear layers."""
        super().__init__(embed_dim=hidden_size, low_rank_dimension=rank, dtype=torch.float32)
        self.hidden_size = hidden_size
        self.rank = rank
        self.rotate_layer = parametrizations.orthogonal(
            LowRankRotateLayer(hidden_size, rank, init_orth=True), orthogonal_map="householder", use_trivialization=False
        )

    @property
    def basis(self) -> Tensor:
        """(D, r) R, with orthonormal columns."""
        return cast(Tensor, self.rotate_layer.weight)

    def set_basis(self, basis: Tensor) -> None:
        """Set R (D, r) to given orthonormal columns, as other formats store them."""
        with torch.no_grad():
            self.rotate_layer.weight = basis

    def edit(self, h: Tensor) -> Tensor:
        """Return the edit of h (..., D) alone, without h."""
        basis = self.basis
        return cast(Tensor, (self.learned_source(h) - h @ basis) @ basis.T)

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None) -> Tensor:  # noqa: ARG002
        """pyreft's interface: return the edited h (..., D) in its own dtype."""
        return (base + self.edit(base.float())).to(base.dtype)

    def state_dict(self, *args: Any, **kwargs: Any) -> OrderedDict[str, Tensor]:
        """The complete state, as torch defines it (pyreft's own override keeps only part of it)."""
        return cast("OrderedDict[str, Tensor]", nn.Module.state_dict(self, *args, **kwargs))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a complete state; a missing, unknown or misshapen tensor raises."""
        return nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)
