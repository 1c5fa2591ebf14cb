"""What goes into an objective and what comes out.

Only answer tokens count, so padding and prompts never reach an objective: a sub-batch is the flat list of its answer
tokens, in any order. Every mean is a local sum divided by the count of the *global* batch. So the losses, terms and
gradients of all workers add up to those of one worker that holds the whole batch, whoever has the longer answers.

Shapes: B sequences, N answer tokens of all of them, V vocabulary, D hidden size, L intervened blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

import torch
from torch import Tensor

__all__ = ["AnswerTokens", "Needs", "ObjectiveInputs", "ObjectiveOutput", "Term", "Totals"]


class Needs(Flag):
    """What a term reads of a sub-batch beyond the cross-entropy; the training step computes nothing else."""

    NOTHING = 0
    LOGITS = auto()
    HIDDEN = auto()
    REFERENCE_NLL = auto()
    REFERENCE_LOGITS = auto()
    REFERENCE_HIDDEN = auto()


@dataclass(frozen=True)
class AnswerTokens:
    """The answer tokens of one sub-batch, each with what the model said where it predicts that token.

    The first answer token is predicted at the last prompt token. Fields named `_ref` are the reference's numbers and
    carry no gradient. A field is None unless a term declares that it :class:`Needs` it.
    """

    nll: Tensor
    """(N,) float32 cross-entropy of the token, in nats."""
    row: Tensor
    """(N,) long, the sequence of the token: 0..num_rows-1."""
    num_rows: int
    """Number of sequences B."""
    logits: Tensor | None = None
    """(N, V)."""
    hidden: Tensor | None = None
    """(N, D) output of the read block."""
    nll_ref: Tensor | None = None
    """(N,)."""
    logits_ref: Tensor | None = None
    """(N, V)."""
    hidden_ref: Tensor | None = None
    """(N, D)."""

    def __post_init__(self) -> None:
        for name in ("row", "logits", "hidden", "nll_ref", "logits_ref", "hidden_ref"):
            value = getattr(self, name)
            assert value is None or value.shape[:1] == self.nll.shape, f"{name} does not have one entry per answer token"

    def sequence_nll(self) -> Tensor:
        """Return -log p(answer) of each sequence, (B,) in nats: the sum over its tokens."""
        return self._sequence_sum(self.nll)

    def sequence_nll_ref(self) -> Tensor:
        """Return the reference's -log p(answer) of each sequence, (B,) in nats."""
        assert self.nll_ref is not None
        return self._sequence_sum(self.nll_ref)

    def _sequence_sum(self, values: Tensor) -> Tensor:
        sums = torch.zeros(self.num_rows, dtype=torch.float32, device=values.device)
        return sums.index_add(0, self.row, values.float())


@dataclass(frozen=True)
class Totals:
    """Counts over the global batch, that is over all workers."""

    forget_rows: int
    forget_tokens: int
    retain_rows: int
    retain_tokens: int

    def __post_init__(self) -> None:
        assert min(vars(self).values()) > 0, f"a global batch without rows or answer tokens: {self}"


@dataclass(frozen=True)
class ObjectiveInputs:
    """One worker's share of a global batch, and the counts of the whole."""

    forget: AnswerTokens
    retain: AnswerTokens
    gate_logits_forget: Tensor
    """(B_forget, L) gate logits u(h)."""
    gate_logits_retain: Tensor
    """(B_retain, L) gate logits u(h)."""
    totals: Totals

    def __post_init__(self) -> None:
        for tokens, gate_logits in ((self.forget, self.gate_logits_forget), (self.retain, self.gate_logits_retain)):
            assert len(gate_logits) == tokens.num_rows, f"{len(gate_logits)} rows of gate logits, {tokens.num_rows} sequences"

    def forget_nll(self) -> Tensor:
        """Return this worker's share of the mean cross-entropy of the forget answer tokens, in nats."""
        return self.forget.nll.float().sum() / self.totals.forget_tokens

    def retain_nll(self) -> Tensor:
        """Return this worker's share of the mean cross-entropy of the retain answer tokens, in nats."""
        return self.retain.nll.float().sum() / self.totals.retain_tokens


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss to be minimised, and the terms that it was made of."""

    loss: Tensor
    """Scalar, with gradient."""
    terms: dict[str, Tensor]
    """Unweighted scalars by metric key, detached. Like the loss, a worker's share: the sum over workers is the value."""


@dataclass(frozen=True)
class Term:
    """A summand of an objective."""

    value: Callable[[ObjectiveInputs, Any], Tensor]
    """From the inputs and the term's own config to an unweighted scalar, lower being nearer to the goal."""
    metric: str
    """Key under which the value is reported."""
    needs: Needs = Needs.NOTHING
    """What is read of the term's own sub-batch."""
    replaces_answers: bool = False
    """Whether the answers of the sub-batch have to be refusals instead of the true ones."""
