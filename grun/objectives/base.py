"""What goes into an objective and what comes out.

Only answer tokens count, so padding and prompts never reach an objective: a sub-batch is the flat list of its answer
tokens, in any order. Every mean is a local sum divided by the count of the *global* batch. So the losses, terms and
gradients of all workers add up to those of one worker that holds the whole batch, whoever has the longer answers.

Shapes: B sequences, N answer tokens of all of them, V vocabulary, D hidden size, L intervened blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, StrEnum, auto
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "AnswerSource",
    "AnswerTokens",
    "EnvironmentGradient",
    "Needs",
    "ObjectiveInputs",
    "ObjectiveOutput",
    "Term",
    "Totals",
]


class AnswerSource(StrEnum):
    """Where the answers of a sub-batch come from."""

    OWN = auto()
    """The record's own."""
    REFUSAL = auto()
    """A refusal."""
    ALTERNATIVE = auto()
    """One of the record's alternative answers."""


class Needs(Flag):
    """What a term reads of a sub-batch beyond the cross-entropy; the training step computes nothing else."""

    NOTHING = 0
    TARGETS = auto()
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
    targets: Tensor | None = None
    """(N,) long, the answer tokens themselves."""
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
        for name in ("row", "targets", "logits", "hidden", "nll_ref", "logits_ref", "hidden_ref"):
            value = getattr(self, name)
            assert value is None or value.shape[:1] == self.nll.shape, f"{name} does not have one entry per answer token"

    def sequence_nll(self) -> Tensor:
        """Return -log p(answer) of each sequence, (B,) in nats: the sum over its tokens."""
        return self._sequence_sum(self.nll)

    def sequence_nll_ref(self) -> Tensor:
        """Return the reference's -log p(answer) of each sequence, (B,) in nats."""
        assert self.nll_ref is not None
        return self._sequence_sum(self.nll_ref)

    def sequence_lengths(self) -> Tensor:
        """Return how many answer tokens each sequence has, (B,) float32."""
        return self._sequence_sum(torch.ones_like(self.nll))

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
    preferred_tokens: int = 0
    """Of the preferred answers; 0 where there are none."""
    environment_tokens: int = 0
    """Of the records of an environment file; 0 where there is none."""

    def __post_init__(self) -> None:
        counts = (self.forget_rows, self.forget_tokens, self.retain_rows, self.retain_tokens)
        assert min(counts) > 0, f"a global batch without rows or answer tokens: {self}"


@dataclass(frozen=True)
class EnvironmentGradient:
    """Gradient of an environment's cross-entropy with respect to M dummy numbers w = 1 (:mod:`grun.objectives.invariance`)."""

    share: Tensor
    """(M,) this worker's share, with gradient."""
    total: Tensor
    """(M,) the sum over workers, detached."""


@dataclass(frozen=True)
class ObjectiveInputs:
    """One worker's share of a global batch, and the counts of the whole."""

    forget: AnswerTokens
    retain: AnswerTokens
    gate_logits_forget: Tensor | None
    """(B_forget, L) gate logits u(h); None where what is trained has no gates, and so no gate term."""
    gate_logits_retain: Tensor | None
    """(B_retain, L) gate logits u(h), or None likewise."""
    totals: Totals
    preferred: AnswerTokens | None = None
    """Preferred answers to the prompts of the forget rows, row by row; None where the forget term compares none."""
    environments: tuple[EnvironmentGradient, ...] = ()
    """Environments of the regulariser; none without it."""

    def __post_init__(self) -> None:
        if self.preferred is not None:
            rows = (self.preferred.num_rows, self.forget.num_rows)
            assert rows[0] == rows[1], f"{rows[0]} preferred answers, {rows[1]} forget rows"
        for tokens, gate_logits in ((self.forget, self.gate_logits_forget), (self.retain, self.gate_logits_retain)):
            if gate_logits is not None:
                assert len(gate_logits) == tokens.num_rows, f"{len(gate_logits)} rows of gate logits, {tokens.num_rows} sequences"
        assert (self.gate_logits_forget is None) == (self.gate_logits_retain is None), "gates on one side only"

    def forget_nll(self) -> Tensor:
        """Return this worker's share of the mean cross-entropy of the forget answer tokens, in nats."""
        return self.forget.nll.float().sum() / self.totals.forget_tokens

    def preferred_nll(self) -> Tensor:
        """Return this worker's share of the mean cross-entropy of the preferred answer tokens, in nats."""
        assert self.preferred is not None
        return self.preferred.nll.float().sum() / self.totals.preferred_tokens

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
    answers: AnswerSource = AnswerSource.OWN
    """Which answers the rows of the sub-batch have to carry."""
    preferred: Callable[[Any], AnswerSource] | None = None
    """From the term's config to the answers that it prefers to those of the rows; None: it compares none."""
