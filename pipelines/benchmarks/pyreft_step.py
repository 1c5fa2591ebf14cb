"""The baseline: a training step as the official code does it, with pyreft.

The forget and the retain rows go through the model apart, each padded to its own longest row; logits are computed at
all positions; the reference of NPO and RMU is a further, unedited pass. Loss and optimizer are ours, on the same adapter.
Source: the trainers of github.com/renjie3/GRUN, and pyreft 0.1.0.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grun.adapters.pyreft_export import last_prompt_locations, to_pyreft
from grun.data.batches import ForgetRetainBatch, TokenBatch, collate
from grun.data.prompts import Example
from grun.interventions import Adapter
from grun.interventions.gated import Edited
from grun.lm import FrozenLM
from grun.objectives import AnswerTokens, Needs, Objective, ObjectiveInputs, Totals

__all__ = ["PyreftInputs"]

_REFERENCE = Needs.REFERENCE_NLL | Needs.REFERENCE_HIDDEN


class PyreftInputs:
    """From a batch to what an objective sees, by pyreft."""

    def __init__(self, adapter: Adapter, lm: FrozenLM, objective: Objective, read_layer: int | None) -> None:
        """Put an adapter into pyreft, around a Llama-shaped base."""
        assert read_layer in (None, lm.num_layers - 1), "hidden states are read where the final norm takes them"
        self.lm = lm
        self.objective = objective
        self.reft = to_pyreft(adapter, lm, threshold=None)
        self.num_layers = len(adapter.layers)
        self.gate_logits: list[Tensor] = []
        for _layer, gated in adapter:
            gated.register_forward_hook(self._collect)

    def __call__(self, batch: ForgetRetainBatch) -> ObjectiveInputs:
        """Two passes, one for each sub-batch, and their references."""
        forget, forget_gates = self._side(batch.forget, self.objective.needs_forget)
        retain, retain_gates = self._side(batch.retain, self.objective.needs_retain)
        totals = Totals(batch.forget_rows, batch.forget_tokens, batch.retain_rows, batch.retain_tokens)
        return ObjectiveInputs(forget, retain, forget_gates, retain_gates, totals)

    def _side(self, examples: Sequence[Example], needs: Needs) -> tuple[AnswerTokens, Tensor]:
        batch = collate(examples, pad_id=self.lm.pad_id).to(self.lm.device)
        self.gate_logits.clear()
        with self._before_the_norm() as states:
            original, edited = self.reft(
                {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False},
                unit_locations=last_prompt_locations(batch.last_prompt, self.num_layers),
                output_original_output=bool(needs & _REFERENCE),
            )

        def hidden(flag: Needs, place: int) -> Tensor | None:
            return states[place][batch.predicts] if flag in needs else None

        tokens = AnswerTokens(
            nll=_answer_nll(edited.logits, batch),
            row=batch.row,
            num_rows=batch.num_rows,
            hidden=hidden(Needs.HIDDEN, -1),
            nll_ref=_answer_nll(original.logits, batch) if Needs.REFERENCE_NLL in needs else None,
            hidden_ref=hidden(Needs.REFERENCE_HIDDEN, 0),
        )
        return tokens, torch.stack(self.gate_logits, dim=-1)

    def _collect(self, _module: nn.Module, _args: Any, output: Edited) -> None:
        assert output.gate_logits is not None
        self.gate_logits.append(output.gate_logits)

    @contextmanager
    def _before_the_norm(self) -> Iterator[list[Tensor]]:
        """Keep the output of the last block, once a pass. No hook: pyvene removes those of others before it runs."""
        norm: Any = self.lm.model.get_submodule("model.norm")
        states: list[Tensor] = []
        forward = norm.forward

        def keep(hidden: Tensor) -> Any:
            states.append(hidden)
            return forward(hidden)

        norm.forward = keep
        try:
            yield states
        finally:
            del norm.forward  # the class's own again


def _answer_nll(logits: Tensor, batch: TokenBatch) -> Tensor:
    """Cross-entropy (N,) of the answer tokens, taken over all positions as Hugging Face's loss does."""
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.predicts] = batch.targets
    nll = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    return nll.view_as(labels)[batch.predicts]
