"""The objective: a forget term, a retain term and a regulariser, faded in together, and the gate term.

    L = w(step) (a_f L_forget + a_r L_retain + a_i L_invariance) + a_g L_gate          w(step) = min(step / gate_warmup_steps, 1)

Steps count from 1. While w is small, gates learn to tell the prompts apart before the edits learn what to do.
What has no gates has no gate term. Source: arXiv:2502.17823.
"""

from dataclasses import dataclass

from grun.config import (
    CeuConfig,
    Config,
    DpoConfig,
    GradDiffConfig,
    IdkConfig,
    NegativeConfig,
    NpoConfig,
    ObjectiveConfig,
    RetainCeConfig,
    RetainHiddenConfig,
    RetainKlConfig,
    RmuConfig,
    SatImpConfig,
    SimNpoConfig,
    TnpoConfig,
    UndialConfig,
    WgaConfig,
    WtnpoConfig,
)
from grun.objectives.base import AnswerSource, Needs, ObjectiveInputs, ObjectiveOutput, Term
from grun.objectives.ceu import ceu
from grun.objectives.dpo import dpo
from grun.objectives.gate_bce import gate_bce
from grun.objectives.grad_diff import grad_diff
from grun.objectives.idk import idk
from grun.objectives.invariance import invariance
from grun.objectives.negative import negative
from grun.objectives.npo import npo
from grun.objectives.retain_ce import retain_ce
from grun.objectives.retain_hidden import retain_hidden
from grun.objectives.retain_kl import retain_kl
from grun.objectives.rmu import rmu
from grun.objectives.satimp import satimp
from grun.objectives.simnpo import simnpo
from grun.objectives.tnpo import tnpo, wtnpo
from grun.objectives.undial import undial
from grun.objectives.wga import wga

__all__ = ["FORGET_TERMS", "RETAIN_TERMS", "Objective", "build_objective"]

FORGET_TERMS: dict[type[Config], Term] = {
    GradDiffConfig: Term(grad_diff, "forget/gd"),
    NpoConfig: Term(npo, "forget/npo", Needs.REFERENCE_NLL),
    SimNpoConfig: Term(simnpo, "forget/simnpo"),
    IdkConfig: Term(idk, "forget/refusal_nll_nats", answers=AnswerSource.REFUSAL),
    DpoConfig: Term(dpo, "forget/dpo", Needs.REFERENCE_NLL, preferred=lambda config: AnswerSource(config.preferred)),
    NegativeConfig: Term(negative, "forget/alternative_nll_nats", answers=AnswerSource.ALTERNATIVE),
    RmuConfig: Term(rmu, "forget/rmu_mse", Needs.HIDDEN),
    UndialConfig: Term(undial, "forget/undial_nats", Needs.TARGETS | Needs.LOGITS | Needs.REFERENCE_LOGITS),
    WgaConfig: Term(wga, "forget/wga"),
    TnpoConfig: Term(tnpo, "forget/tnpo", Needs.REFERENCE_NLL),
    WtnpoConfig: Term(wtnpo, "forget/wtnpo", Needs.REFERENCE_NLL),
    SatImpConfig: Term(satimp, "forget/satimp"),
    CeuConfig: Term(ceu, "forget/ceu_nats", Needs.TARGETS | Needs.LOGITS),
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
    """Weighted sum of a forget term, a retain term, a regulariser and the gate term. Holds no state."""

    config: ObjectiveConfig
    forget: Term
    retain: Term

    @property
    def needs_forget(self) -> Needs:
        """What has to be computed of the forget sub-batch beyond the cross-entropy."""
        return self.forget.needs

    @property
    def needs_retain(self) -> Needs:
        """What has to be computed of the retain sub-batch beyond the cross-entropy: for its term, and as an environment."""
        return self.retain.needs | self.needs_environment

    @property
    def needs_environment(self) -> Needs:
        """What the regulariser reads of an environment beyond the cross-entropy."""
        invariance = self.config.invariance
        return Needs.LOGITS if invariance is not None and invariance.reading == "logits" else Needs.NOTHING

    @property
    def answers(self) -> AnswerSource:
        """Which answers the forget sub-batch has to carry."""
        return self.forget.answers

    @property
    def preferred(self) -> AnswerSource | None:
        """Which answers are preferred to those of the forget sub-batch; None where none are compared."""
        return None if self.forget.preferred is None else self.forget.preferred(self.config.forget)

    @property
    def differentiates_twice(self) -> bool:
        """Whether the loss contains a derivative, so that attention must have a second one."""
        return self.config.invariance is not None and self.config.invariance.reading == "parameters"

    def warmup(self, step: int) -> float:
        """Return w(step), the share of the forget and retain terms at an optimizer step counted from 1."""
        assert step >= 1, step
        steps = self.config.gate_warmup_steps
        return min(step / steps, 1.0) if steps else 1.0

    def __call__(self, inputs: ObjectiveInputs, step: int) -> ObjectiveOutput:
        """Return the loss of a worker's share of the batch and its terms, at an optimizer step counted from 1.

        Beside the terms, the cross-entropies of the sub-batches are reported; where others replace the answers to forget,
        that of the answers is not known and is left out. Without gates there is no gate term either.
        """
        config = self.config
        forget = self.forget.value(inputs, config.forget)
        retain = self.retain.value(inputs, config.retain)
        terms = {self.forget.metric: forget, self.retain.metric: retain}
        edit = config.forget.weight * forget + config.retain.weight * retain
        if config.invariance is not None:
            terms["invariance/penalty"] = invariance(inputs)
            edit = edit + config.invariance.weight * terms["invariance/penalty"]
        loss = self.warmup(step) * edit
        if inputs.gate_logits_forget is not None:
            terms["gate/bce"] = gate = gate_bce(inputs)
            loss = loss + config.gate_weight * gate
        terms["retain/nll_nats"] = inputs.retain_nll()
        if self.answers is AnswerSource.OWN:
            terms["forget/nll_nats"] = inputs.forget_nll()
        if inputs.preferred is not None:
            terms["forget/preferred_nll_nats"] = inputs.preferred_nll()
        return ObjectiveOutput(loss, {key: term.detach() for key, term in terms.items()})


def build_objective(config: ObjectiveConfig) -> Objective:
    """Look up the terms that a config names."""
    return Objective(config, FORGET_TERMS[type(config.forget)], RETAIN_TERMS[type(config.retain)])
