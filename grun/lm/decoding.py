"""Sequences that are continued together, and that may come and go between two steps.

Prompts are read in one forward pass, each edited at its own last token by the adapter that the caller names. From then
on the base decodes alone: an edit lives on in the keys and values that it left behind. So sequences that were read
under different adapters can be decoded in one batch.

Rows are padded on the left, to the longest. Adding rows pads whoever is shorter; removing rows takes padding away that
nobody needs any more.

Shapes: B sequences, T tokens read so far with padding, V vocabulary, L gate columns.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from grun.errors import ModelError
from grun.lm.frozen import FrozenLM
from grun.lm.intervened import IntervenedLM

__all__ = ["Decoding", "Prefilled", "check_decodable", "prefill"]


@dataclass
class Decoding:
    """The state of B sequences between two steps."""

    lm: FrozenLM
    cache: DynamicCache
    """Keys and values of every block, (B, heads, T, width of a head)."""
    mask: Tensor
    """(B, T) 1 for tokens, 0 for padding."""

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token (B,) of each sequence; return the logits (B, V) of the next."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        return _forward(self.lm, tokens.unsqueeze(-1), self.mask, self.cache)

    @torch.inference_mode()
    def join(self, other: "Decoding") -> None:
        """Take in the sequences of another, which is used up; they come behind one's own."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        ours, theirs = length - self.mask.shape[1], length - other.mask.shape[1]
        self.mask = torch.cat([F.pad(self.mask, (ours, 0)), F.pad(other.mask, (theirs, 0))])
        for mine, its in zip(_layers(self.cache), _layers(other.cache), strict=True):
            mine.keys = torch.cat([F.pad(mine.keys, (0, 0, ours, 0)), F.pad(its.keys, (0, 0, theirs, 0))])
            mine.values = torch.cat([F.pad(mine.values, (0, 0, ours, 0)), F.pad(its.values, (0, 0, theirs, 0))])

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Drop every sequence but those at `rows`, at least one."""
        index = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[index]
        start = int(mask.any(0).int().argmax())
        self.mask = mask[:, start:]
        for layer in _layers(self.cache):
            layer.keys = layer.keys[index][..., start:, :]
            layer.values = layer.values[index][..., start:, :]


@dataclass(frozen=True)
class Prefilled:
    """Prompts that were read."""

    decoding: Decoding
    """What continues them."""
    logits: Tensor
    """(B, V) logits of their first new tokens."""
    gate_logits: Tensor | None
    """(B, L) what the gates said at their last tokens; None without gates."""


@torch.inference_mode()
def prefill(model: IntervenedLM, prompts: Sequence[Sequence[int]]) -> Prefilled:
    """Read prompts (token ids, none of them empty) under a model's adapter."""
    input_ids, mask = model.padded(prompts)
    cache = DynamicCache()
    with model.edited_prefill(input_ids) as edits:
        logits = _forward(model.lm, input_ids, mask, cache)
    return Prefilled(Decoding(model.lm, cache, mask), logits, edits.gate_logits() if edits else None)


def check_decodable(lm: FrozenLM) -> None:
    """Refuse a base whose past is more than the keys and values of its tokens: rows of different lengths could not be joined.

    Raises:
        ModelError: with what else the base keeps.
    """
    layers = DynamicCache(config=lm.model.config).layers
    others = sorted({type(layer).__name__ for layer in layers if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)})
    if others:
        raise ModelError(
            f"a served base must keep nothing but keys and values of what it has read, got {lm.info.name!r}, which keeps {others}; "
            "serve another base"
        )


def _forward(lm: FrozenLM, input_ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Logits (B, V) at the last of some new tokens (B, N), whose mask (B, T) covers what was read before as well."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    # some families count positions by themselves
    known = _parameters(type(lm.model).forward)
    more = {name: value for name, value in {"position_ids": positions, "logits_to_keep": 1}.items() if name in known}
    logits = lm.model(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more).logits
    assert isinstance(logits, Tensor)
    return logits[:, -1]


@functools.cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    """Names of what the forward pass of a family takes; kept, as every token asks."""
    return frozenset(inspect.signature(forward).parameters)


def _layers(cache: DynamicCache) -> Any:
    """The layers of a cache that was made without a configuration: all of them keep every key, whatever a block attends to."""
    return cache.layers
