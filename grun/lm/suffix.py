"""Suffix batches: the last prompt token and the answer of each row, on top of prefixes that are constants.

    prefix  = prompt tokens before the last one: keys and values of the blocks above the cut, read and never written
    suffix  = the last prompt token and the answer without its end: what is run, and where every answer token is predicted

Suffixes are packed: all rows of a batch lie in one sequence behind each other, so that no product of matrices sees a token of
padding, however ragged the rows are. Only attention has to know where a row begins and which prefix is its own. It is
registered with the library as an implementation of attention, and calls the one that the model came with row by row, so
that grouped heads, scaling and soft caps stay the model's; a sliding window is cut out by position.

Shapes: B rows, N suffix tokens of all of them, n and P suffix and prefix tokens of one, H key heads, E width of a head, D hidden size.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["SuffixBatch", "SuffixRow", "pack_suffixes"]


class SuffixRow(Protocol):
    """One row of a prefix cache."""

    @property
    def prefix_length(self) -> int:
        """Tokens P of the prompt before the last one."""
        ...

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The tokens to be predicted, n of them."""
        ...

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the prefix in a block above the cut, (H, P, E) each."""
        ...

    def states(self, layer: int) -> Tensor:
        """Return the unedited output of a block at the suffix, (n, D)."""
        ...


@dataclass(frozen=True)
class SuffixBatch:
    """Packed suffixes, the prefixes before them, and what the block at the cut puts out."""

    rows: Sequence[SuffixRow]
    position_ids: Tensor
    """(1, N) positions counted from each row's first token."""
    targets: Tensor
    """(N,) the answer tokens, row after row."""
    row: Tensor
    """(N,) the row of each token."""
    supplies: Mapping[int, Tensor]
    """By block, the output (1, N, D) that stands for what is not computed."""
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Number of rows B."""
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """Tokens n of each suffix."""
        return [len(row.answer_ids) for row in self.rows]

    @property
    def edited(self) -> tuple[Tensor, Tensor]:
        """Index of each row's last prompt token: the first of its suffix."""
        ends = torch.tensor(self.lengths).cumsum(0)
        starts = (ends - torch.tensor(self.lengths)).to(self.row.device)
        return torch.zeros_like(starts), starts

    @property
    def predicts(self) -> Tensor:
        """(1, N) True where the next token is an answer token: everywhere."""
        return torch.ones_like(self.position_ids, dtype=torch.bool)

    def model_inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward."""
        [states] = self.supplies.values()
        # the placeholder at the cut puts `states` in the place of whatever it is given
        return {"inputs_embeds": torch.zeros_like(states), "position_ids": self.position_ids}

    @contextmanager
    def running(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the model's attention know this batch while it runs."""
        config = model.config.get_text_config()
        own = config._attn_implementation
        token = _RUNNING.set((self, own))
        config._attn_implementation = _NAME
        try:
            yield
        finally:
            config._attn_implementation = own
            _RUNNING.reset(token)

    def mask(self, suffix: int, prefix: int, window: int | None, like: Tensor) -> Tensor:
        """What a suffix of n tokens sees of P + n keys, (1, 1, n, P + n): 0, or the least number there is."""
        key = (suffix, prefix, window)
        if key not in self._masks:
            position = torch.arange(prefix, prefix + suffix, device=like.device).unsqueeze(1)
            of_key = torch.arange(prefix + suffix, device=like.device)
            seen = (of_key <= position) & (True if window is None else of_key > position - window)
            hidden = torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, torch.finfo(like.dtype).min)
            self._masks[key] = hidden[None, None]
        return self._masks[key]


_NAME = "grun_packed_suffixes"

_RUNNING: ContextVar[tuple[SuffixBatch, str]] = ContextVar("running suffixes")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,  # noqa: ARG001 - there is none for an implementation that the library does not know
    *,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The library's interface: from (1, heads, N, E) to (1, N, heads, E), row by row."""
    batch, own = _RUNNING.get()
    attend = _implementation(module, own)
    layer, outputs = _layer_of(module), []
    # one split and not a slice a row: the gradient of a slice is as large as what it was cut from
    suffixes = zip(*(whole.split(batch.lengths, dim=2) for whole in (query, key, value)), strict=True)
    for row, (queries, *new) in zip(batch.rows, suffixes, strict=True):
        keys, values = (
            torch.cat([prefix.to(suffix.device).unsqueeze(0), suffix], dim=2)
            for prefix, suffix in zip(row.keys_values(layer), new, strict=True)
        )
        mask = batch.mask(queries.shape[2], row.prefix_length, sliding_window, query)
        outputs.append(attend(module, queries, keys, values, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(_NAME, _attend)


def _layer_of(module: nn.Module) -> int:
    layer = module.layer_idx
    assert isinstance(layer, int)
    return layer


def _implementation(module: nn.Module, name: str) -> Callable[..., Any]:
    """The attention that the model came with; `eager` is a function of the model's own file."""
    if name == "eager":
        found: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return found
    implementation: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
    return implementation


def pack_suffixes(rows: Sequence[SuffixRow], *, cut: int, device: torch.device) -> SuffixBatch:
    """Pack rows of a prefix cache to a batch for the blocks above `cut`."""
    lengths = torch.tensor([len(row.answer_ids) for row in rows])
    positions = [torch.arange(row.prefix_length, row.prefix_length + len(row.answer_ids)) for row in rows]
    return SuffixBatch(
        rows=rows,
        position_ids=torch.cat(positions).unsqueeze(0).to(device),
        targets=torch.tensor([token for row in rows for token in row.answer_ids]).to(device),
        row=torch.repeat_interleave(torch.arange(len(rows)), lengths).to(device),
        supplies={cut: torch.cat([row.states(cut) for row in rows]).unsqueeze(0).to(device)},
    )
