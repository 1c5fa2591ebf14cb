"""Suffix batches: the last prompt token and the answer of each row, on top of prefixes that are constants.

    prefix  = prompt tokens before the last one: keys and values of the blocks above the cut, read and never written
    suffix  = the last prompt token and the answer without its end: what is run, and where every answer token is predicted

Prefixes are padded on the left and suffixes on the right, so that the two meet and no query is left without a key.

Shapes: B rows, P longest prefix, S longest suffix, N answer tokens, H key heads, E width of a head, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

__all__ = ["SuffixBatch", "SuffixRow", "collate_suffixes"]


class SuffixRow(Protocol):
    """One row of a prefix cache."""

    @property
    def prefix_length(self) -> int:
        """Tokens of the prompt before the last one."""
        ...

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The tokens to be predicted, n of them."""
        ...

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the prefix in a block above the cut, (H, prefix_length, E) each."""
        ...

    def states(self, layer: int) -> Tensor:
        """Return the unedited output of a block at the suffix, (n, D)."""
        ...


class _PrefixLayer(DynamicLayer):
    """Keys and values of a prefix, which attention may extend but not change.

    The library's own layer would grow with every forward pass, and keep its graph. Sliding windows need nothing else:
    the prefix is stored whole, and the mask, which counts positions, cuts the window out.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        DynamicLayer.__init__(self)
        self.prefix = keys, values
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, H, P + S, E) of prefix and suffix."""
        keys, values = self.prefix
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        """Length P of the prefix."""
        return int(self.prefix[0].shape[-2])


class _PrefixCache(DynamicCache):
    """One layer for every block of the model; those that are skipped know their length only."""

    def __init__(self, layers: Sequence[_PrefixLayer]) -> None:
        super().__init__()
        self.layers = list(layers)


@dataclass(frozen=True)
class SuffixBatch:
    """Padded suffixes, the prefixes before them, and what the block at the cut puts out."""

    attention_mask: Tensor
    """(B, P + S) 1 at tokens, 0 at padding."""
    position_ids: Tensor
    """(B, S) positions counted from each row's first token."""
    last_prompt: Tensor
    """(B,) index of the last prompt token in the suffix: 0."""
    predicts: Tensor
    """(B, S) True where the next token is an answer token: everywhere but at padding."""
    targets: Tensor
    """(N,) the answer tokens, row after row."""
    row: Tensor
    """(N,) the row of each answer token."""
    supplies: Mapping[int, Tensor]
    """By block, the output (B, S, D) that stands for what is not computed."""
    keys_values: Mapping[int, tuple[Tensor, Tensor]]
    """By block above the cut, keys and values (B, H, P, E)."""
    num_layers: int

    @property
    def num_rows(self) -> int:
        """Number of rows B."""
        return self.attention_mask.shape[0]

    def model_inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward."""
        [states] = self.supplies.values()
        rows, prefix = self.num_rows, self.attention_mask.shape[1] - self.predicts.shape[1]
        length_only = states.new_zeros(1).expand(rows, 1, prefix, 1)
        layers = [_PrefixLayer(*self.keys_values.get(layer, (length_only, length_only))) for layer in range(self.num_layers)]
        return {
            # the placeholder at the cut puts `states` in the place of whatever it is given
            "inputs_embeds": torch.zeros_like(states),
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            "past_key_values": _PrefixCache(layers),
        }


def collate_suffixes(rows: Sequence[SuffixRow], *, cut: int, num_layers: int, device: torch.device) -> SuffixBatch:
    """Pad rows of a prefix cache to a batch for the blocks above `cut`."""
    prefixes = torch.tensor([row.prefix_length for row in rows])
    suffixes = torch.tensor([len(row.answer_ids) for row in rows])
    prefix, suffix = int(prefixes.max()), int(suffixes.max())
    at_prefix = torch.arange(prefix) >= (prefix - prefixes).unsqueeze(1)
    predicts = torch.arange(suffix) < suffixes.unsqueeze(1)
    # padding repeats the last position, as a table of positions may end there
    offsets = torch.minimum(torch.arange(suffix), suffixes.unsqueeze(1) - 1)
    keys_values = {layer: _pad_left([row.keys_values(layer) for row in rows], prefix) for layer in range(cut + 1, num_layers)}
    return SuffixBatch(
        attention_mask=torch.cat([at_prefix, predicts], dim=1).long().to(device),
        position_ids=(prefixes.unsqueeze(1) + offsets).to(device),
        last_prompt=torch.zeros(len(rows), dtype=torch.long, device=device),
        predicts=predicts.to(device),
        targets=torch.tensor([token for row in rows for token in row.answer_ids]).to(device),
        row=predicts.nonzero(as_tuple=True)[0].to(device),
        supplies={cut: _pad_right([row.states(cut) for row in rows], suffix).to(device)},
        keys_values={layer: (keys.to(device), values.to(device)) for layer, (keys, values) in keys_values.items()},
        num_layers=num_layers,
    )


def _pad_left(rows: Sequence[tuple[Tensor, Tensor]], length: int) -> tuple[Tensor, Tensor]:
    first = rows[0][0]
    keys, values = (first.new_zeros(len(rows), first.shape[0], length, first.shape[2]) for _ in range(2))
    for index, (key, value) in enumerate(rows):
        start = length - key.shape[1]
        keys[index, :, start:] = key
        values[index, :, start:] = value
    return keys, values


def _pad_right(rows: Sequence[Tensor], length: int) -> Tensor:
    padded = rows[0].new_zeros(len(rows), length, rows[0].shape[1])
    for index, states in enumerate(rows):
        padded[index, : len(states)] = states
    return padded
