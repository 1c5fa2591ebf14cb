"""A changed base: a copy in which weights learn, beside the base as it was, which stays the reference.

It is scored like any base without an adapter, and trained by the same step and optimizer as an adapter.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grun.data.prompts import Example
from grun.interventions import Edits
from grun.lm import Answers, FrozenLM, FullPass
from grun.lm.blocks import block_list

__all__ = ["ChangedBase", "ChangedPass", "copied"]


@dataclass(frozen=True)
class ChangedBase:
    """A base of which some weights learn."""

    lm: FrozenLM
    """The copy; its tensors are its own."""
    original: FrozenLM
    """The base it was copied from."""
    idle_at_start: frozenset[str] = frozenset()
    """Parameters that get a gradient only once others have moved."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that learn; a head that shares the embedding is named once."""
        return ((name, p) for name, p in self.lm.model.named_parameters() if p.requires_grad)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Parameters for an optimizer: matrices are decayed, the vectors of norms and biases are not."""
        learning = [parameter for _name, parameter in self.named_parameters()]
        return [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]

    @property
    def num_trained(self) -> int:
        """How many numbers learn."""
        return sum(parameter.numel() for _name, parameter in self.named_parameters())

    def base(self, num_buckets: int) -> "ChangedPass":
        """What runs it: full passes, in batches of similar length."""
        return ChangedPass(FullPass(self.lm, num_buckets), FullPass(self.original, num_buckets))


@dataclass(frozen=True)
class ChangedPass:
    """The copy answers, and the base as it was is the reference."""

    changed: FullPass
    original: FullPass
    known: dict[Example, Tensor] = field(default_factory=dict)
    """The reference's cross-entropies of rows that were asked for before: they never change."""

    @property
    def lm(self) -> FrozenLM:
        """The copy."""
        return self.changed.lm

    def cut_at(self, layer: int) -> "ChangedPass":  # noqa: ARG002 - what changes everywhere is run whole
        """As :meth:`grun.lm.Pass.cut_at`: nothing changes."""
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
        """As :meth:`grun.lm.Pass.answers`, with gradients to the weights that learn."""
        return self.changed.answers(examples, adapter, threshold=threshold, keep_logits=keep_logits, read_layer=read_layer)

    def reference(self, examples: Sequence[Example], *, keep_logits: bool = False, read_layer: int | None = None) -> Answers:
        """As :meth:`grun.lm.Pass.reference`; cross-entropies alone are computed once a row."""
        if keep_logits or read_layer is not None:
            return self.original.reference(examples, keep_logits=keep_logits, read_layer=read_layer)
        missing = [example for example in dict.fromkeys(examples) if example not in self.known]
        if missing:
            computed = self.original.reference(missing)
            self.known.update({example: computed.nll[computed.row == row] for row, example in enumerate(missing)})
        nll = [self.known[example] for example in examples]
        lengths = torch.tensor([len(values) for values in nll], device=self.lm.device)
        row = torch.repeat_interleave(torch.arange(len(nll), device=self.lm.device), lengths)
        return Answers(nll=torch.cat(nll), row=row, num_rows=len(nll), logits=None, hidden=None, gate_logits=None)


def copied(lm: FrozenLM) -> tuple[FrozenLM, PreTrainedModel]:
    """Return a copy of a base that shares no tensor with it, and the model in it; nothing of it learns yet."""
    model = copy.deepcopy(lm.model)
    return replace(lm, model=model, blocks=tuple(block_list(model))), model
