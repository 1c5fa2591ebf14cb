"""The next token: the likeliest, or one that is drawn. Each row draws from a generator of its own.

So what a row gets depends on its seed and not on who shares the batch with it. Drawing inverts the cumulative
distribution of the tokens, likeliest first, cut to the smallest set that holds `top_p` of the probability.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["NO_TOKEN", "Chooser", "choose"]

NO_TOKEN = -1
"""In place of the token of a row that has none: its largest logit is no finite number."""


@dataclass
class Chooser:
    """How one row's tokens are chosen."""

    temperature: float
    """Logits are divided by it; 0 takes the likeliest token, which is where ever smaller ones lead."""
    top_p: float
    """Share of the probability that is drawn from."""
    seed: int
    """Two rows with the same seed and logits draw the same tokens."""
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def uniform(self) -> float:
        """The next number of this row, in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


@torch.inference_mode()
def choose(logits: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    """Choose the next token (B,) of each row from its logits (B, V); :data:`NO_TOKEN` ends no row but its own."""
    largest, tokens = logits.max(-1)
    drawing = [index for index, chooser in enumerate(choosers) if not chooser.is_greedy]
    if drawing:
        tokens[drawing] = _draw(logits[drawing], [choosers[index] for index in drawing])
    return tokens.where(largest.isfinite(), NO_TOKEN)


def _draw(logits: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(-1)

    # the largest is 0 before anything is divided, so however small the temperature, it stays 0 and only the others go to -inf
    below = logits.double() - logits.amax(-1, keepdim=True)
    scaled = below / column([chooser.temperature for chooser in choosers])
    probabilities, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= column([chooser.top_p for chooser in choosers]), 0.0)
    kept[:, 0] = probabilities[:, 0]  # rounding must not leave a row without any
    summed = kept.cumsum(-1)
    drawn = column([chooser.uniform() for chooser in choosers]) * summed[:, -1:]
    # a row of NaN keeps none, and an index outside would end the whole batch, on a GPU the process
    last = ((kept > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
    place = torch.searchsorted(summed, drawn, right=True).minimum(last)
    return order.gather(-1, place).squeeze(-1)
