"""The intervened model: a frozen base and, for the time of a call, the edits of an adapter or a stack on its blocks.

Each row is edited at its own last prompt token and nowhere else. During generation only the prefill is edited:
a decoding step sees the edit through the keys and values that it left behind, and is not touched itself.

Shapes: B sequences, T padded length, N answer tokens of the batch, V vocabulary, D hidden size, L columns of gates: an
adapter's edited blocks, or what `AdapterStack.columns` names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from grun.interventions import Edits
from grun.lm.frozen import FrozenLM
from grun.lm.hooks import edit_outputs, narrow_input

__all__ = ["Answers", "Generated", "IntervenedLM", "ModelBatch", "Sampling"]


@dataclass(frozen=True)
class Answers:
    """What the model says at the positions that predict answer tokens."""

    nll: Tensor
    """(N,) float32 cross-entropy of each answer token, in nats."""
    row: Tensor
    """(N,) the sequence each token belongs to."""
    num_rows: int
    """Number of sequences."""
    logits: Tensor | None
    """(N, V) logits, where they were asked for."""
    hidden: Tensor | None
    """(N, D) output of the read block, where one was asked for."""
    gate_logits: Tensor | None
    """(B, L) gate logits by edited block, shallowest first; None without an adapter, and where it has no gates."""


@dataclass(frozen=True)
class Sampling:
    """Continuations that are drawn and not the likeliest; the same seed and batch give the same ones."""

    temperature: float
    """Above 0; logits are divided by it."""
    seed: int


@dataclass(frozen=True)
class Generated:
    """Continuations of prompts."""

    texts: tuple[str, ...]
    gate_logits: Tensor | None
    """(B, L) as in :class:`Answers`."""


class ModelBatch(Protocol):
    """What a forward pass is given: token ids, or suffixes on top of cached prefixes."""

    @property
    def edited(self) -> tuple[Tensor, Tensor]:
        """Index (first axis, second axis), each (B,), of each row's last prompt token: the only position that is ever edited."""
        ...

    @property
    def predicts(self) -> Tensor:
        """(B, T) True where the next token is an answer token."""
        ...

    @property
    def targets(self) -> Tensor:
        """(N,) the answer tokens, row after row."""
        ...

    @property
    def row(self) -> Tensor:
        """(N,) the row of each answer token."""
        ...

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def supplies(self) -> Mapping[int, Tensor]:
        """By block, outputs (B, T, D) that are not computed but brought along."""
        ...

    def model_inputs(self) -> Mapping[str, Any]:
        """Arguments of the model's forward."""
        ...

    def running(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Whatever the model has to know of the batch beside its arguments, for the time of a forward pass."""
        ...


def _constant(states: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _h: states


class _EditedPass:
    """The edits of one forward pass, and the gate logits they leave behind."""

    def __init__(self, adapter: Edits, edited: tuple[Tensor, Tensor], threshold: float | None, *, prefill_only: bool) -> None:
        self.adapter = adapter
        self.edited = edited
        self.threshold = threshold
        self.prefill_only = prefill_only
        self.logits: dict[int, Tensor | None] = {}

    def at(self, layer: int) -> Callable[[Tensor], Tensor]:
        def edit(h: Tensor) -> Tensor:
            if self.prefill_only and layer in self.logits:
                return h  # a decoding step
            edited = self.adapter.at(layer)(h[self.edited], threshold=self.threshold)
            self.logits[layer] = edited.gate_logits
            return h.index_put(self.edited, edited.hidden)

        return edit

    def gate_logits(self) -> Tensor | None:
        columns = [logits.view(len(logits), -1) for layer in self.adapter.layers if (logits := self.logits[layer]) is not None]
        return torch.cat(columns, dim=-1) if columns else None


class IntervenedLM:
    """A frozen base with an adapter or a stack of them, or without: then it is the reference."""

    def __init__(self, lm: FrozenLM, adapter: Edits | None = None, *, threshold: float | None = None) -> None:
        """Put an adapter, or a stack, on a base.

        Args:
            threshold: gate threshold; None leaves gates soft, as in training, and those of a stack at their members' own.
        """
        self.lm = lm
        self.adapter = adapter
        self.threshold = threshold

    def answers(self, batch: ModelBatch, *, keep_logits: bool = False, read_layer: int | None = None) -> Answers:
        """Score the answers of a batch, with gradients to the adapter unless the caller disables them.

        Args:
            keep_logits: also return the logits over the vocabulary.
            read_layer: block whose output is also returned, after its edit.
        """
        read: list[Tensor] = []
        with (
            self._supplied(batch),
            self._edited(batch.edited) as edits,
            edit_outputs(self._reader(read_layer, batch.predicts, read)),
            narrow_input(self.lm.head, batch.predicts),
        ):
            logits = self._forward(batch)
        return Answers(
            nll=F.cross_entropy(logits.float(), batch.targets, reduction="none"),
            row=batch.row,
            num_rows=batch.num_rows,
            logits=logits if keep_logits else None,
            hidden=read[0] if read else None,
            gate_logits=edits.gate_logits() if edits else None,
        )

    def _supplied(self, batch: ModelBatch) -> AbstractContextManager[None]:
        """Put what a batch brings along in the place of what blocks put out; attached first, so that edits see it."""
        return edit_outputs({self.lm.blocks[layer]: _constant(states) for layer, states in batch.supplies.items()})

    def _forward(self, batch: ModelBatch) -> Tensor:
        with batch.running(self.lm.model):
            logits = self.lm.model(**batch.model_inputs(), use_cache=False).logits
        assert isinstance(logits, Tensor)
        return logits

    def _reader(self, layer: int | None, predicts: Tensor, read: list[Tensor]) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
        """A hook that keeps the output of a block where it predicts an answer token; attached last, it sees the edit."""
        if layer is None:
            return {}

        def keep(h: Tensor) -> Tensor:
            read.append(h[predicts])
            return h

        return {self.lm.blocks[layer]: keep}

    @torch.no_grad()
    def logits(self, batch: ModelBatch) -> Tensor:
        """Return the full logits (B, T, V) of a batch."""
        with self._supplied(batch), self._edited(batch.edited):
            return self._forward(batch)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling | None = None) -> Generated:
        """Continue prompts (token ids) until the end of text: greedily, or by sampling."""
        input_ids, attention_mask = self.padded(prompts)
        length = input_ids.shape[1]
        with self.edited_prefill(input_ids) as edits, _seeded(sampling, self.lm.device):
            generate: Any = self.lm.model.generate
            output = generate(
                inputs=input_ids,
                attention_mask=attention_mask,
                generation_config=self._generation(max_new_tokens, sampling),
            )
        assert isinstance(output, Tensor)
        texts = self.lm.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        return Generated(tuple(text.strip() for text in texts), edits.gate_logits() if edits else None)

    def padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Put prompts into one batch, padded on the left: token ids and attention mask, each (B, T), on the base's device."""
        length = max(len(prompt) for prompt in prompts)
        input_ids = torch.full((len(prompts), length), self.lm.pad_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for index, prompt in enumerate(prompts):
            input_ids[index, length - len(prompt) :] = torch.tensor(prompt)
            attention_mask[index, length - len(prompt) :] = 1
        return input_ids.to(self.lm.device), attention_mask.to(self.lm.device)

    def edited_prefill(self, input_ids: Tensor) -> AbstractContextManager["_EditedPass | None"]:
        """Edit the last token of each row of :meth:`padded` prompts in the first forward pass within the context, and in no other."""
        rows, length = input_ids.shape
        index = torch.arange(rows, device=input_ids.device), torch.full((rows,), length - 1, device=input_ids.device)
        return self._edited(index, prefill_only=True)

    @property
    def ends(self) -> list[int]:
        """Token ids that end a text."""
        config = self.lm.model.generation_config
        ends = config.eos_token_id if config and config.eos_token_id is not None else self.lm.tokenizer.eos_token_id
        return list(ends) if isinstance(ends, list | tuple) else [ends]

    def _generation(self, max_new_tokens: int, sampling: Sampling | None) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            **(
                {"do_sample": False} if sampling is None else {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
            ),
            pad_token_id=self.lm.pad_id,
            eos_token_id=self.ends,
        )

    @contextmanager
    def _edited(self, edited: tuple[Tensor, Tensor], *, prefill_only: bool = False) -> Iterator[_EditedPass | None]:
        """Attach the adapter's edits; nothing without an adapter."""
        if self.adapter is None:
            yield None
            return
        edits = _EditedPass(self.adapter, edited, self.threshold, prefill_only=prefill_only)
        with edit_outputs({self.lm.blocks[layer]: edits.at(layer) for layer in self.adapter.layers}):
            yield edits


@contextmanager
def _seeded(sampling: Sampling | None, device: torch.device) -> Iterator[None]:
    """Draw from a seed of its own, and leave the global generators as they were."""
    if sampling is None:
        yield
        return
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(sampling.seed)
        yield
