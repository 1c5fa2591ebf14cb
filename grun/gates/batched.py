"""Many gates of one shape at once, and how far their logits may be from those that each gate computes itself.

A stack asks which of its gates could be open; one product per layer answers for all of them. The order in which a
product sums its terms differs between one gate and many, so the last bits of a logit do too. What follows is decided
by bits: whoever lies within the margin of a threshold has to be asked on its own.

The margin is a bound, not an estimate. For a sum of n products in any order, rounding errs by at most
(n + 1) 2^-24 sum |w_j a_j|, at most (n + 1) 2^-24 ||w|| ||a|| (Higham, Accuracy and Stability, section 3.1; the bias is
one term more). Over the layers, with e_l a bound on the error of what goes into layer l and ||a|| the norm that is there:

    e_1 = 0          e_l+1 = ||W_l||_F e_l + (n_l + 2) 2^-24 (||W_l||_F (||a_l|| + e_l) + ||b_l||)

as ReLU brings no two numbers further apart. Both computations err, hence twice the last e; and the bound's own arithmetic
errs, hence a little more. Where the user lets products run in fewer bits, 2^-24 becomes what those bits allow.

Shapes: B rows, D hidden size, K gates, H units of a hidden layer.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from grun.gates.base import AbstractGate

__all__ = ["BatchedGates", "Screened"]

_ROUNDOFF = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}
"""Unit roundoff of a product by torch's float32 precision: float32, TF32, bfloat16."""


class Screened(NamedTuple):
    """What a batched computation knows of its gates."""

    logits: Tensor
    """(B, K) u(h) in float32, in the order of the gates."""
    margin: Tensor
    """(B, K) how far a gate's own logit may be from that, at most."""


class BatchedGates(nn.Module):
    """Gates whose layers are of the same shapes, as stacked copies that no state dict holds."""

    def __init__(self, gates: Sequence[AbstractGate]) -> None:
        """Copy the gates' weights, which are not to change after this."""
        super().__init__()
        by_layer = list(zip(*(gate.linears() for gate in gates), strict=True))
        self.num_layers = len(by_layer)
        for index, linears in enumerate(by_layer):
            weight = torch.stack([linear.weight.detach() for linear in linears])
            bias = torch.stack([linear.bias.detach() for linear in linears])
            self.register_buffer(f"weight_{index}", weight, persistent=False)
            self.register_buffer(f"bias_{index}", bias, persistent=False)
            self.register_buffer(f"weight_norm_{index}", weight.flatten(1).norm(dim=1), persistent=False)
            self.register_buffer(f"bias_norm_{index}", bias.norm(dim=1), persistent=False)

    def _layer(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(K, H', H) weights, (K, H') biases, and the norms (K,) of both."""
        names = ("weight", "bias", "weight_norm", "bias_norm")
        weight, bias, weight_norm, bias_norm = (cast(Tensor, getattr(self, f"{name}_{index}")) for name in names)
        return weight, bias, weight_norm, bias_norm

    @torch.no_grad()
    def forward(self, h: Tensor) -> Screened:
        """Screen rows h (B, D) in float32."""
        roundoff = _ROUNDOFF[torch.get_float32_matmul_precision()]
        units, error = h, torch.zeros(len(h), 1, device=h.device)
        for index in range(self.num_layers):
            weight, bias, weight_norm, bias_norm = self._layer(index)
            norm = units.norm(dim=-1)
            if index == 0:  # all gates read the same h: one wide product
                norm = norm.unsqueeze(-1)
                units = (h @ weight.flatten(0, 1).T).unflatten(-1, weight.shape[:2])
            else:
                units = torch.einsum("bkh,koh->bko", units, weight)
            units = units + bias
            grown = weight_norm * error
            error = grown + (weight.shape[-1] + 2) * roundoff * (weight_norm * (norm + error) + bias_norm)
            if index + 1 < self.num_layers:
                units = units.relu()
        return Screened(units.squeeze(-1), 2.01 * error)
