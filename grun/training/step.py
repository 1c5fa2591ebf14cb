"""One step's numbers: from a batch of examples to what the objective sees. Masks and positions are settled here.

Forget and retain rows go through the model together, so that a sharded base is gathered once and not twice; the
reference, the same with the adapter off, is asked for only by objectives that need it.
"""

from typing import Any

from torch import Tensor

from grun.data.batches import ForgetRetainBatch
from grun.interventions import Adapter
from grun.lm import Answers, Pass
from grun.objectives import AnswerTokens, Needs, Objective, ObjectiveInputs, Totals

__all__ = ["forward"]


def forward(
    base: Pass, adapter: Adapter, batch: ForgetRetainBatch, objective: Objective, *, read_layer: int | None = None
) -> ObjectiveInputs:
    """Run the intervened model on a worker's share of a batch, and the reference where the objective needs it."""
    examples = [*batch.forget, *batch.retain]
    needs = objective.needs_forget | objective.needs_retain
    answers = base.answers(examples, adapter, keep_logits=Needs.LOGITS in needs, read_layer=read_layer)
    reference = None
    if needs & (Needs.REFERENCE_NLL | Needs.REFERENCE_LOGITS | Needs.REFERENCE_HIDDEN):
        reference = base.reference(
            examples,
            keep_logits=Needs.REFERENCE_LOGITS in needs,
            read_layer=read_layer if Needs.REFERENCE_HIDDEN in needs else None,
        )
    gate_logits = answers.gate_logits
    assert gate_logits is not None
    num_forget = len(batch.forget)
    return ObjectiveInputs(
        forget=_side(answers, reference, objective.needs_forget, 0, num_forget),
        retain=_side(answers, reference, objective.needs_retain, num_forget, len(examples)),
        gate_logits_forget=gate_logits[:num_forget],
        gate_logits_retain=gate_logits[num_forget:],
        totals=Totals(batch.forget_rows, batch.forget_tokens, batch.retain_rows, batch.retain_tokens),
    )


def _side(answers: Answers, reference: Answers | None, needs: Needs, first: int, end: int) -> AnswerTokens:
    """The answer tokens of rows first..end-1, with what a term needs of them."""
    mine = (answers.row >= first) & (answers.row < end)

    def pick(flag: Needs, values: Tensor | None) -> Any:
        return values[mine] if flag in needs and values is not None else None

    return AnswerTokens(
        nll=answers.nll[mine],
        row=answers.row[mine] - first,
        num_rows=end - first,
        logits=pick(Needs.LOGITS, answers.logits),
        hidden=pick(Needs.HIDDEN, answers.hidden),
        nll_ref=pick(Needs.REFERENCE_NLL, reference.nll if reference else None),
        logits_ref=pick(Needs.REFERENCE_LOGITS, reference.logits if reference else None),
        hidden_ref=pick(Needs.REFERENCE_HIDDEN, reference.hidden if reference else None),
    )
