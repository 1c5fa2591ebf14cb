"""One step's numbers: from a batch of examples to what the objective sees. Masks and positions are settled here.

Forget and retain rows go through the model together, so that a sharded base is gathered once and not twice; the
reference, the same with the adapter off, is asked for only by objectives that need it.
"""

from dataclasses import replace

from torch import Tensor

from grun.data.batches import ForgetRetainBatch
from grun.interventions import Adapter
from grun.lm import Answers, Pass
from grun.objectives import AnswerTokens, Needs, Objective, ObjectiveInputs, Totals

__all__ = ["forward"]

_REFERENCE = Needs.REFERENCE_NLL | Needs.REFERENCE_LOGITS | Needs.REFERENCE_HIDDEN


def forward(
    base: Pass, adapter: Adapter, batch: ForgetRetainBatch, objective: Objective, *, read_layer: int | None = None
) -> ObjectiveInputs:
    """Run the intervened model on a worker's share of a batch, and the reference where the objective needs it."""
    examples = [*batch.forget, *batch.retain]
    needs = objective.needs_forget | objective.needs_retain
    answers = base.answers(examples, adapter, keep_logits=Needs.LOGITS in needs, read_layer=read_layer)
    gate_logits = answers.gate_logits
    assert gate_logits is not None
    num_forget = len(batch.forget)
    # rows whose term reads nothing of the reference are not run for it
    first, end = (
        0 if objective.needs_forget & _REFERENCE else num_forget,
        len(examples) if objective.needs_retain & _REFERENCE else num_forget,
    )
    reference = None
    if first < end:
        reference = base.reference(
            examples[first:end],
            keep_logits=Needs.REFERENCE_LOGITS in needs,
            read_layer=read_layer if Needs.REFERENCE_HIDDEN in needs else None,
        )
    return ObjectiveInputs(
        forget=_side(_rows(answers, 0, num_forget), _rows(reference, 0, num_forget), objective.needs_forget),
        retain=_side(
            _rows(answers, num_forget, len(examples)),
            _rows(reference, num_forget - first, len(examples) - first),
            objective.needs_retain,
        ),
        gate_logits_forget=gate_logits[:num_forget],
        gate_logits_retain=gate_logits[num_forget:],
        totals=Totals(batch.forget_rows, batch.forget_tokens, batch.retain_rows, batch.retain_tokens),
    )


def _rows(answers: Answers | None, first: int, end: int) -> Answers | None:
    """The answer tokens of rows first..end-1, counted from 0."""
    if answers is None:
        return None
    mine = (answers.row >= first) & (answers.row < end)
    return replace(
        answers,
        nll=answers.nll[mine],
        row=answers.row[mine] - first,
        num_rows=end - first,
        logits=None if answers.logits is None else answers.logits[mine],
        hidden=None if answers.hidden is None else answers.hidden[mine],
    )


def _side(answers: Answers | None, reference: Answers | None, needs: Needs) -> AnswerTokens:
    """The answer tokens of a sub-batch, with what its term needs of them."""
    assert answers is not None

    def pick(flag: Needs, values: Tensor | None) -> Tensor | None:
        return values if flag in needs else None

    return AnswerTokens(
        nll=answers.nll,
        row=answers.row,
        num_rows=answers.num_rows,
        logits=pick(Needs.LOGITS, answers.logits),
        hidden=pick(Needs.HIDDEN, answers.hidden),
        nll_ref=pick(Needs.REFERENCE_NLL, reference.nll if reference else None),
        logits_ref=pick(Needs.REFERENCE_LOGITS, reference.logits if reference else None),
        hidden_ref=pick(Needs.REFERENCE_HIDDEN, reference.hidden if reference else None),
    )
