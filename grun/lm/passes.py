"""Passes: how answers are scored on a base. Full, from token ids; or cached, from the suffix on.

Both give the same numbers in the same order, so training and evaluation do not care which one they hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from grun.data.batches import collate, length_buckets
from grun.data.prompts import Example
from grun.errors import CacheError
from grun.interventions import Edits
from grun.lm.frozen import FrozenLM
from grun.lm.intervened import Answers, IntervenedLM
from grun.lm.prefix_cache import PrefixCache
from grun.lm.suffix import pack_suffixes

__all__ = ["CachedPass", "FullPass", "Pass"]


class Pass(Protocol):
    """Scores answers, with an adapter or without."""

    @property
    def lm(self) -> FrozenLM:
        """The base, or its upper part."""
        ...

    def cut_at(self, layer: int) -> "Pass":
        """Return the same base for an adapter that starts at a block."""
        ...

    def answers(
        self,
        examples: Sequence[Example],
        adapter: Edits | None,
        *,
        threshold: float | None = None,
        keep_logits: bool = False,
        read_layer: int | None = None,
    ) -> Answers:
        """Score the answers of some rows, with gradients to the adapter unless the caller disables them.

        Args:
            adapter: an adapter, or a stack of them.
            threshold: as of :class:`IntervenedLM`.
            keep_logits: also return the logits over the vocabulary.
            read_layer: block whose output is also returned, after its edit.
        """
        ...

    def reference(self, examples: Sequence[Example], *, keep_logits: bool = False, read_layer: int | None = None) -> Answers:
        """Score the same rows with the adapter off, without gradients."""
        ...


@dataclass(frozen=True)
class FullPass:
    """Every token through every block."""

    lm: FrozenLM
    num_buckets: int = 1
    """Batches of similar length that the rows are divided into."""

    def cut_at(self, layer: int) -> "FullPass":  # noqa: ARG002 - every block is run
        """As :meth:`Pass.cut_at`: nothing changes."""
        return self

    def answers(
        self,
        examples: Sequence[Example],
        adapter: Edits | None,
        *,
        threshold: float | None = None,
        keep_logits: bool = False,
        read_layer: int | None = None,
    ) -> Answers:
        """As :meth:`Pass.answers`."""
        model = IntervenedLM(self.lm, adapter, threshold=threshold)

        def run(rows: Sequence[int]) -> Answers:
            batch = collate([examples[row] for row in rows], pad_id=self.lm.pad_id).to(self.lm.device)
            return model.answers(batch, keep_logits=keep_logits, read_layer=read_layer)

        return _in_buckets([len(example.ids) for example in examples], self.num_buckets, run)

    @torch.no_grad()
    def reference(self, examples: Sequence[Example], *, keep_logits: bool = False, read_layer: int | None = None) -> Answers:
        """As :meth:`Pass.reference`: one more forward pass."""
        return self.answers(examples, None, keep_logits=keep_logits, read_layer=read_layer)


@dataclass(frozen=True)
class CachedPass:
    """The suffix through the blocks above the cut, without padding; what comes before is read from a prefix cache."""

    lm: FrozenLM
    """The upper part of the base, cut where the adapter starts."""
    cache: PrefixCache

    def __post_init__(self) -> None:
        if self.lm.info.variant is not None:
            raise CacheError(
                f"a prefix cache serves the full-precision base alone, got a base as {self.lm.info.variant}; run it whole, without a cache"
            )
        if self.lm.cut is None or self.lm.cut not in self.cache.spec.state_layers:
            raise CacheError(
                f"a prefix cache serves adapters that start at one of its cuts, {self.cache.spec.state_layers}, got {self.lm.cut}; "
                "build one for this placement"
            )

    def cut_at(self, layer: int) -> "CachedPass":
        """As :meth:`Pass.cut_at`: blocks up to a deeper cut are skipped, and those that are loaded already stay loaded."""
        assert self.lm.cut is not None
        assert layer >= self.lm.cut, f"blocks up to {self.lm.cut} are not loaded, an edit at {layer} needs them"
        return self if layer == self.lm.cut else replace(self, lm=self.lm.above(layer))

    def answers(
        self,
        examples: Sequence[Example],
        adapter: Edits | None,
        *,
        threshold: float | None = None,
        keep_logits: bool = False,
        read_layer: int | None = None,
    ) -> Answers:
        """As :meth:`Pass.answers`."""
        assert adapter is None or adapter.layers[0] == self.lm.cut, f"cut at {self.lm.cut}, edits at {adapter.layers}"
        model = IntervenedLM(self.lm, adapter, threshold=threshold)
        return self._run(model, examples, keep_logits=keep_logits, read_layer=read_layer)

    @torch.no_grad()
    def reference(self, examples: Sequence[Example], *, keep_logits: bool = False, read_layer: int | None = None) -> Answers:
        """As :meth:`Pass.reference`: read from the cache; logits cost the final norm and one product with the head."""
        rows = [self.cache.row(example) for example in examples]
        lengths = torch.tensor([len(row.answer_ids) for row in rows])
        hidden = None if read_layer is None else torch.cat([row.states(read_layer) for row in rows]).to(self.lm.device)
        logits = None
        if keep_logits:
            last = self.lm.num_layers - 1
            logits = self._run(IntervenedLM(self.lm.above(last)), examples, keep_logits=True, read_layer=None).logits
        return Answers(
            nll=torch.cat([row.reference_nll for row in rows]).to(self.lm.device),
            row=torch.repeat_interleave(torch.arange(len(rows)), lengths).to(self.lm.device),
            num_rows=len(rows),
            logits=logits,
            hidden=hidden,
            gate_logits=None,
        )

    def _run(self, model: IntervenedLM, examples: Sequence[Example], *, keep_logits: bool, read_layer: int | None) -> Answers:
        assert model.lm.cut is not None
        batch = pack_suffixes([self.cache.row(example) for example in examples], cut=model.lm.cut, device=self.lm.device)
        return model.answers(batch, keep_logits=keep_logits, read_layer=read_layer)


def _in_buckets(lengths: Sequence[int], num_buckets: int, run: Callable[[Sequence[int]], Answers]) -> Answers:
    """Run rows in batches of similar length, and put them back into the order in which they were given."""
    buckets = length_buckets(lengths, num_buckets)
    return _merge([run(bucket) for bucket in buckets], buckets)


def _merge(parts: Sequence[Answers], buckets: Sequence[Sequence[int]]) -> Answers:
    """One batch of several, row by row in the order of their indices."""
    device = parts[0].nll.device
    rows = torch.cat([torch.tensor(bucket, device=device)[part.row] for part, bucket in zip(parts, buckets, strict=True)])
    order = rows.argsort(stable=True)
    places = torch.tensor([index for bucket in buckets for index in bucket], device=device).argsort()

    def merged(name: str, by: Tensor) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)[by]

    return replace(
        parts[0],
        nll=torch.cat([part.nll for part in parts])[order],
        row=rows[order],
        num_rows=len(places),
        logits=merged("logits", order),
        hidden=merged("hidden", order),
        gate_logits=merged("gate_logits", places),
    )
