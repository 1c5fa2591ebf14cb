"""One step's numbers: from a batch of examples to what the objective sees. Masks and positions are settled here.

All rows go through the model together, forget and retain rows, preferred answers and environments alike, so that a sharded
base is gathered once; the reference, the same with the adapter off, is asked for only by objectives that need it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from grun.data.batches import ForgetRetainBatch
from grun.data.prompts import Example
from grun.interventions import Adapter
from grun.lm import Answers, Pass
from grun.objectives import AnswerTokens, EnvironmentGradient, Needs, Objective, ObjectiveInputs, Totals
from grun.objectives.invariance import of_logits, of_parameters

__all__ = ["forward"]

_REFERENCE = Needs.REFERENCE_NLL | Needs.REFERENCE_LOGITS | Needs.REFERENCE_HIDDEN


def _of_one_worker(values: Tensor) -> None:
    """The sum over workers where there is one."""


def forward(
    base: Pass,
    adapter: Adapter | None,
    batch: ForgetRetainBatch,
    objective: Objective,
    *,
    read_layer: int | None = None,
    sum_: Callable[[Tensor], None] = _of_one_worker,
) -> ObjectiveInputs:
    """Run the intervened model on a worker's share of a batch, and the reference where the objective needs it.

    Args:
        adapter: None where it is the base itself that learns.
        sum_: sums a tensor over all workers, in place; called only by objectives with a regulariser, once.
    """
    parts = _Parts(
        [
            _Part(batch.forget, objective.needs_forget),
            _Part(batch.retain, objective.needs_retain),
            _Part(batch.preferred, objective.needs_forget),
            _Part(batch.environment, objective.needs_environment),
        ]
    )
    with _attention(objective):
        answers = base.answers(parts.examples, adapter, keep_logits=Needs.LOGITS in parts.needs, read_layer=read_layer)
    gate_logits = answers.gate_logits
    forget, retain, preferred, environment = parts.tokens(answers, base, read_layer)
    num_forget, num_retain = len(batch.forget), len(batch.retain)
    return ObjectiveInputs(
        forget=forget,
        retain=retain,
        gate_logits_forget=None if gate_logits is None else gate_logits[:num_forget],
        gate_logits_retain=None if gate_logits is None else gate_logits[num_forget : num_forget + num_retain],
        totals=Totals(
            batch.forget_rows,
            batch.forget_tokens,
            batch.retain_rows,
            batch.retain_tokens,
            batch.preferred_tokens,
            batch.environment_tokens,
        ),
        preferred=None if objective.preferred is None else preferred,
        environments=_environments(objective, adapter, batch, retain, environment, sum_),
    )


def _attention(objective: Objective) -> AbstractContextManager[None]:
    """Fused attention has no second derivative; the plain one has, and is kept to where one is taken."""
    return sdpa_kernel(SDPBackend.MATH) if objective.differentiates_twice else nullcontext()


@dataclass(frozen=True)
class _Part:
    """A sub-batch, and what its term needs of it."""

    examples: Sequence[Example]
    needs: Needs

    @property
    def needs_reference(self) -> bool:
        return bool(self.needs & _REFERENCE) and len(self.examples) > 0


@dataclass(frozen=True)
class _Parts:
    """Sub-batches that are run together."""

    parts: Sequence[_Part]

    @property
    def examples(self) -> list[Example]:
        return [example for part in self.parts for example in part.examples]

    @property
    def needs(self) -> Needs:
        """What is needed of any part that has rows."""
        needs = Needs.NOTHING
        for part in self.parts:
            needs |= part.needs if part.examples else Needs.NOTHING
        return needs

    def tokens(self, answers: Answers, base: Pass, read_layer: int | None) -> list[AnswerTokens]:
        """What each part's term sees; rows whose term reads nothing of the reference are not run for it."""
        referenced = _Parts([part for part in self.parts if part.needs_reference])
        references: Iterator[Answers] = iter(())
        if referenced.parts:
            reference = base.reference(
                referenced.examples,
                keep_logits=Needs.REFERENCE_LOGITS in referenced.needs,
                read_layer=read_layer if Needs.REFERENCE_HIDDEN in referenced.needs else None,
            )
            references = iter(_split(reference, referenced.parts))
        return [
            _tokens(part, mine, next(references) if part.needs_reference else None)
            for part, mine in zip(self.parts, _split(answers, self.parts), strict=True)
        ]


def _split(answers: Answers, parts: Sequence[_Part]) -> list[Answers]:
    """The answers of each part, rows counted from 0."""
    split, first = [], 0
    for part in parts:
        end = first + len(part.examples)
        mine = (answers.row >= first) & (answers.row < end)
        split.append(
            replace(
                answers,
                nll=answers.nll[mine],
                row=answers.row[mine] - first,
                num_rows=end - first,
                logits=None if answers.logits is None else answers.logits[mine],
                hidden=None if answers.hidden is None else answers.hidden[mine],
            )
        )
        first = end
    return split


def _tokens(part: _Part, answers: Answers, reference: Answers | None) -> AnswerTokens:
    """The answer tokens of a part, with what its term needs of them."""

    def pick(flag: Needs, values: Tensor | None) -> Tensor | None:
        return values if flag in part.needs else None

    targets = None
    if Needs.TARGETS in part.needs:
        # answers come row after row, as the examples do
        targets = torch.tensor([token for example in part.examples for token in example.answer_ids], device=answers.row.device)
    return AnswerTokens(
        nll=answers.nll,
        row=answers.row,
        num_rows=answers.num_rows,
        targets=targets,
        logits=pick(Needs.LOGITS, answers.logits),
        hidden=pick(Needs.HIDDEN, answers.hidden),
        nll_ref=pick(Needs.REFERENCE_NLL, reference.nll if reference else None),
        logits_ref=pick(Needs.REFERENCE_LOGITS, reference.logits if reference else None),
        hidden_ref=pick(Needs.REFERENCE_HIDDEN, reference.hidden if reference else None),
    )


def _environments(
    objective: Objective,
    adapter: Adapter | None,
    batch: ForgetRetainBatch,
    retain: AnswerTokens,
    unrelated: AnswerTokens,
    sum_: Callable[[Tensor], None],
) -> tuple[EnvironmentGradient, ...]:
    """The environments of the regulariser: the retain rows, and the unrelated ones where there are any."""
    if objective.config.invariance is None:
        return ()
    environments = [(retain, batch.retain_tokens)]
    if batch.environment_tokens:
        environments.append((unrelated, batch.environment_tokens))
    if objective.differentiates_twice:
        assert adapter is not None
        parameters = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
        shares = [of_parameters(tokens, count, parameters) for tokens, count in environments]
    else:
        shares = [of_logits(tokens, count) for tokens, count in environments]
    totals = torch.stack([share.detach() for share in shares])
    sum_(totals)
    return tuple(EnvironmentGradient(share, total) for share, total in zip(shares, totals, strict=True))
