"""The objective: a forget term and a retain term, faded in together, and the gate term.

    L = w(step) (a_f L_forget + a_r L_retain) + a_g L_gate          w(step) = min(step / gate_warmup_steps, 1)

Steps count from 1. While w is small, gates learn to tell the prompts apart before the edits learn what to do.
Source: arXiv:2502.17823.
"""

from dataclasses import dataclass

from grun.config import (
    Config,
    GradDiffConfig,
    IdkConfig,
    NpoConfig,
    ObjectiveConfig,
    RetainCeConfig,
    RetainHiddenConfig,
    RetainKlConfig,
    RmuConfig,
)
from grun.objectives.base import Needs, ObjectiveInputs, ObjectiveOutput, Term
from grun.objectives.gate_bce import gate_bce
from grun.objectives.grad_diff import grad_diff
from grun.objectives.idk import idk
from grun.objectives.npo import npo
from grun.objectives.retain_ce import retain_ce
from grun.objectives.retain_hidden import retain_hidden
from grun.objectives.retain_kl import retain_kl
from grun.objectives.rmu import rmu

__all__ = ["FORGET_TERMS", "RETAIN_TERMS", "Objective", "build_objective"]

FORGET_TERMS: dict[type[Config], Term] = {
    GradDiffConfig: Term(grad_diff, "forget/gd"),
    NpoConfig: Term(npo, "forget/npo", Needs.REFERENCE_NLL),
    IdkConfig: Term(idk, "forget/refusal_nll_nats", replaces_answers=True),
    RmuConfig: Term(rmu, "forget/rmu_mse", Needs.HIDDEN),
}
"""What is done with the forget set, by the class of its config."""

RETAIN_TERMS: dict[type[Config], Term] = {
    RetainCeConfig: Term(retain_ce, "retain/nll_nats"),
    RetainKlConfig: Term(retain_kl, "retain/kl_nats", Needs.LOGITS | Needs.REFERENCE_LOGITS),
    RetainHiddenConfig: Term(retain_hidden, "retain/hidden_mse", Needs.HIDDEN | Needs.REFERENCE_HIDDEN),
}
"""What is done with the retain set, by the class of its config."""


@dataclass(frozen=True)
class Objective:
    """Weighted sum of a forget term, a retain term and the gate term. Holds no state."""

    config: ObjectiveConfig
    forget: Term
    retain: Term

    @property
    def needs_forget(self) -> Needs:
        """What has to be computed of the forget sub-batch beyond the cross-entropy."""
        return self.forget.needs

    @property
    def needs_retain(self) -> Needs:
        """What has to be computed of the retain sub-batch beyond the cross-entropy."""
        return self.retain.needs

    @property
    def replaces_answers(self) -> bool:
        """Whether the forget sub-batch has to carry refusals in place of its answers."""
        return self.forget.replaces_answers

    def warmup(self, step: int) -> float:
        """Return w(step), the share of the forget and retain terms at an optimizer step counted from 1."""
        assert step >= 1, step
        steps = self.config.gate_warmup_steps
        return min(step / steps, 1.0) if steps else 1.0

    def __call__(self, inputs: ObjectiveInputs, step: int) -> ObjectiveOutput:
        """Return the loss of a worker's share of the batch and its terms, at an optimizer step counted from 1.

        Beside the terms, the cross-entropies of the two sub-batches are reported; where refusals replace the answers
        to forget, that of the answers is not known and is left out.
        """
        forget = self.forget.value(inputs, self.config.forget)
        retain = self.retain.value(inputs, self.config.retain)
        gate = gate_bce(inputs)
        edit = self.config.forget.weight * forget + self.config.retain.weight * retain
        loss = self.warmup(step) * edit + self.config.gate_weight * gate
        terms = {self.forget.metric: forget, self.retain.metric: retain, "gate/bce": gate}
        terms["retain/nll_nats"] = inputs.retain_nll()
        if not self.replaces_answers:
            terms["forget/nll_nats"] = inputs.forget_nll()
        return ObjectiveOutput(loss, {key: term.detach() for key, term in terms.items()})


def build_objective(config: ObjectiveConfig) -> Objective:
    """Look up the terms that a config names."""
    return Objective(config, FORGET_TERMS[type(config.forget)], RETAIN_TERMS[type(config.retain)])
