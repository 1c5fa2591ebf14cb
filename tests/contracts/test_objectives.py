"""What every objective must do, whichever terms it is made of."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grun.config import (
    CeuConfig,
    Config,
    DpoConfig,
    ForgetTermConfig,
    GradDiffConfig,
    IdkConfig,
    InvarianceConfig,
    NegativeConfig,
    NpoConfig,
    ObjectiveConfig,
    RetainCeConfig,
    RetainHiddenConfig,
    RetainKlConfig,
    RetainTermConfig,
    RmuConfig,
    SatImpConfig,
    SimNpoConfig,
    TnpoConfig,
    UndialConfig,
    WgaConfig,
    WtnpoConfig,
)
from grun.objectives import (
    FORGET_TERMS,
    RETAIN_TERMS,
    AnswerTokens,
    EnvironmentGradient,
    Needs,
    Objective,
    ObjectiveInputs,
    Totals,
    build_objective,
)
from grun.objectives.invariance import of_logits
from grun.objectives.rmu import direction

FORGET_KINDS = get_args(get_args(ForgetTermConfig)[0])
RETAIN_KINDS = get_args(get_args(RetainTermConfig)[0])
PAIRS = list(product(FORGET_KINDS, RETAIN_KINDS))
VOCABULARY, WIDTH, BLOCKS = 7, 5, 3
Goal = Callable[[AnswerTokens], Tensor]


def cross_entropy(tokens: AnswerTokens) -> Tensor:
    return tokens.nll.sum()


def distance_to_the_target(tokens: AnswerTokens) -> Tensor:
    assert tokens.hidden is not None
    return torch.dist(tokens.hidden, RmuConfig().coefficient * direction(0, WIDTH))


def distance_to_the_reference(tokens: AnswerTokens) -> Tensor:
    assert tokens.hidden is not None
    assert tokens.hidden_ref is not None
    return torch.dist(tokens.hidden, tokens.hidden_ref)


def difference_of_probabilities(tokens: AnswerTokens) -> Tensor:
    assert tokens.logits is not None
    assert tokens.logits_ref is not None
    return torch.dist(tokens.logits.softmax(-1), tokens.logits_ref.softmax(-1))


GOALS: dict[type[Config], tuple[int, Goal]] = {
    GradDiffConfig: (+1, cross_entropy),
    NpoConfig: (+1, cross_entropy),
    SimNpoConfig: (+1, cross_entropy),
    IdkConfig: (-1, cross_entropy),
    DpoConfig: (+1, cross_entropy),
    NegativeConfig: (-1, cross_entropy),
    RmuConfig: (-1, distance_to_the_target),
    UndialConfig: (+1, cross_entropy),
    WgaConfig: (+1, cross_entropy),
    TnpoConfig: (+1, cross_entropy),
    WtnpoConfig: (+1, cross_entropy),
    SatImpConfig: (+1, cross_entropy),
    CeuConfig: (+1, cross_entropy),
    RetainCeConfig: (-1, cross_entropy),
    RetainKlConfig: (-1, difference_of_probabilities),
    RetainHiddenConfig: (-1, distance_to_the_reference),
}
"""What a step down the loss must raise (+1) or lower (-1)."""

MOVING_WEIGHTS = (WgaConfig, TnpoConfig, WtnpoConfig, SatImpConfig)
"""Terms that weight tokens by constants that are drawn anew each step: what falls is the value with the weights as they were."""


class Side:
    """A sub-batch whose logits, hidden states and gate logits stand for the model: they are what is differentiated."""

    def __init__(self, lengths: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

        self.lengths = lengths
        self.row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        count = len(self.row)
        self.labels = torch.randint(VOCABULARY, (count,), generator=generator)
        self.logits, self.logits_ref = leaf(count, VOCABULARY), leaf(count, VOCABULARY).detach()
        with torch.no_grad():  # answers that the model knows, or terms that leave forgotten tokens alone would do nothing
            for logits in (self.logits, self.logits_ref):
                logits[range(count), self.labels] += 2
        self.hidden, self.hidden_ref = leaf(count, WIDTH), leaf(count, WIDTH).detach()
        self.gates = leaf(len(lengths), BLOCKS)
        self.dtype, self.seed = dtype, seed

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.logits, self.hidden, self.gates

    @cached_property
    def preferred(self) -> "Side":
        """Other answers to the same prompts, of other lengths."""
        return Side(self.lengths[::-1], self.seed + 100, self.dtype)

    def tokens(self, needs: Needs) -> AnswerTokens:
        def nll(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), self.labels, reduction="none")

        return AnswerTokens(
            nll=nll(self.logits),
            row=self.row,
            num_rows=len(self.lengths),
            targets=self.labels if Needs.TARGETS in needs else None,
            logits=self.logits if Needs.LOGITS in needs else None,
            hidden=self.hidden if Needs.HIDDEN in needs else None,
            nll_ref=nll(self.logits_ref) if Needs.REFERENCE_NLL in needs else None,
            logits_ref=self.logits_ref if Needs.REFERENCE_LOGITS in needs else None,
            hidden_ref=self.hidden_ref if Needs.REFERENCE_HIDDEN in needs else None,
        )


def inputs_of(objective: Objective, forget: Side, retain: Side) -> ObjectiveInputs:
    """Exactly what the objective says it needs."""
    preferred = None if objective.preferred is None else forget.preferred
    totals = Totals(
        len(forget.lengths),
        len(forget.row),
        len(retain.lengths),
        len(retain.row),
        preferred_tokens=0 if preferred is None else len(preferred.row),
    )
    forget_tokens, retain_tokens = forget.tokens(objective.needs_forget), retain.tokens(objective.needs_retain)
    share = of_logits(retain_tokens, len(retain.row)) if objective.config.invariance is not None else None
    return ObjectiveInputs(
        forget_tokens,
        retain_tokens,
        forget.gates,
        retain.gates,
        totals,
        preferred=None if preferred is None else preferred.tokens(objective.needs_forget),
        environments=() if share is None else (EnvironmentGradient(share, share.detach()),),
    )


def tensors(tokens: AnswerTokens) -> dict[str, Tensor]:
    return {name: value for name, value in vars(tokens).items() if isinstance(value, Tensor)}


def rows(tokens: AnswerTokens, start: int, stop: int) -> AnswerTokens:
    """The share of a worker that holds the sequences start..stop-1."""
    mine = (tokens.row >= start) & (tokens.row < stop)
    share = {name: value[mine] for name, value in tensors(tokens).items()}
    return replace(tokens, **{**share, "row": share["row"] - start}, num_rows=stop - start)


def environments(retain: AnswerTokens, whole: ObjectiveInputs) -> tuple[EnvironmentGradient, ...]:
    """The share of a worker that holds some of the retain rows; what all hold together comes with the whole."""
    return (EnvironmentGradient(of_logits(retain, whole.totals.retain_tokens), whole.environments[0].total),)


def gradients(loss: Tensor, forget: Side, retain: Side) -> list[Tensor]:
    leaves = [*forget.leaves, *retain.leaves, forget.preferred.logits]
    return list(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True))


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(kind.model_fields["kind"].default for kind in pair))
def objective(request: pytest.FixtureRequest) -> Objective:
    forget, retain = request.param
    return build_objective(ObjectiveConfig(forget=forget(), retain=retain(), invariance=InvarianceConfig()))


def test_every_kind_is_registered_and_has_a_goal_here() -> None:
    assert set(FORGET_TERMS) == set(FORGET_KINDS)
    assert set(RETAIN_TERMS) == set(RETAIN_KINDS)
    assert set(GOALS) == {*FORGET_KINDS, *RETAIN_KINDS}


def test_finite_scalars_with_gradients_from_both_sides_and_all_gates(objective: Objective) -> None:
    forget, retain = Side((3, 1, 4), seed=0), Side((2, 5), seed=1)
    output = objective(inputs_of(objective, forget, retain), step=1)
    assert output.loss.shape == ()
    assert all(term.shape == () and term.isfinite() and not term.requires_grad for term in output.terms.values())
    for side in (forget, retain):
        logits, hidden, gates = torch.autograd.grad(
            output.loss, side.leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert all(gradient.isfinite().all() for gradient in (logits, hidden, gates))
        assert torch.cat([logits, hidden], dim=-1).any(dim=-1).all(), "an answer token that teaches nothing"
        assert gates.all()
    if objective.preferred is not None:
        [towards] = torch.autograd.grad(output.loss, [forget.preferred.logits])
        assert towards.any(dim=-1).all()


def test_a_step_down_the_loss_approaches_every_goal(objective: Objective) -> None:
    forget, retain = Side((3, 1, 4), seed=0), Side((2, 5), seed=1)
    before = inputs_of(objective, forget, retain)
    output = objective(before, step=1)
    downhill = gradients(output.loss, forget, retain)
    with torch.no_grad():
        for leaf, gradient in zip((*forget.leaves, *retain.leaves, forget.preferred.logits), downhill, strict=True):
            leaf.sub_(1e-3 * gradient)
    after = inputs_of(objective, forget, retain)
    improved = objective(after, step=1)
    moving = isinstance(objective.config.forget, MOVING_WEIGHTS)
    if moving:
        weights = torch.autograd.grad(objective.forget.value(before, objective.config.forget), before.forget.nll)[0]
        assert torch.dot(weights, after.forget.nll - before.forget.nll) < 0
    else:
        assert improved.loss < output.loss
    for term, config in ((objective.forget, objective.config.forget), (objective.retain, objective.config.retain)):
        assert (moving and term is objective.forget) or improved.terms[term.metric] < output.terms[term.metric]
        sign, goal = GOALS[type(config)]
        is_forget = term is objective.forget
        needs = Needs.LOGITS | Needs.REFERENCE_LOGITS | Needs.HIDDEN | Needs.REFERENCE_HIDDEN
        now = (forget if is_forget else retain).tokens(needs)
        then = Side((3, 1, 4), seed=0).tokens(needs) if is_forget else Side((2, 5), seed=1).tokens(needs)
        assert sign * (goal(now) - goal(then)) > 0
    assert improved.terms["gate/bce"] < output.terms["gate/bce"]


def test_without_gates_there_is_no_gate_term(objective: Objective) -> None:
    forget, retain = Side((3, 1, 4), seed=0), Side((2, 5), seed=1)
    gated = inputs_of(objective, forget, retain)
    whole, ungated = objective(gated, step=1), objective(replace(gated, gate_logits_forget=None, gate_logits_retain=None), step=1)
    assert whole.terms.keys() - ungated.terms.keys() == {"gate/bce"}
    assert all(torch.equal(value, whole.terms[key]) for key, value in ungated.terms.items())
    config = objective.config
    expected = (
        config.forget.weight * ungated.terms[objective.forget.metric]
        + config.retain.weight * ungated.terms[objective.retain.metric]
    )
    if config.invariance is not None:
        expected = expected + config.invariance.weight * ungated.terms["invariance/penalty"]
    torch.testing.assert_close(ungated.loss.detach(), expected)


def test_each_term_reads_its_own_side(objective: Objective) -> None:
    forget, other_forget = Side((3, 1, 4), seed=0), Side((2,), seed=2)
    retain, other_retain = Side((2, 5), seed=1), Side((1, 1, 1, 1), seed=3)
    terms = objective(inputs_of(objective, forget, retain), step=1).terms
    with_other_retain = objective(inputs_of(objective, forget, other_retain), step=1).terms
    with_other_forget = objective(inputs_of(objective, other_forget, retain), step=1).terms
    for key, term in terms.items():
        if not key.startswith("gate/"):
            assert torch.equal(term, with_other_retain[key]) == key.startswith("forget/")
            assert torch.equal(term, with_other_forget[key]) == key.startswith(("retain/", "invariance/"))


lengths = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize(("forget_kind", "retain_kind"), PAIRS)
@settings(deadline=None, max_examples=15)
@given(forget_lengths=lengths, retain_lengths=lengths, data=st.data())
def test_workers_add_up_to_the_global_batch(
    forget_kind: type, retain_kind: type, forget_lengths: tuple[int, ...], retain_lengths: tuple[int, ...], data: st.DataObject
) -> None:
    config = ObjectiveConfig(forget=forget_kind(), retain=retain_kind(), invariance=InvarianceConfig(), gate_warmup_steps=3)
    objective = build_objective(config)
    forget, retain = Side(forget_lengths, seed=0), Side(retain_lengths, seed=1)
    whole = inputs_of(objective, forget, retain)
    cut_forget = data.draw(st.integers(0, len(forget_lengths)))
    cut_retain = data.draw(st.integers(0, len(retain_lengths)))
    shares = [
        replace(
            whole,
            forget=rows(whole.forget, a, b),
            retain=rows(whole.retain, c, d),
            gate_logits_forget=forget.gates[a:b],
            gate_logits_retain=retain.gates[c:d],
            preferred=None if whole.preferred is None else rows(whole.preferred, a, b),
            environments=environments(rows(whole.retain, c, d), whole),
        )
        for (a, b), (c, d) in (
            ((0, cut_forget), (0, cut_retain)),
            ((cut_forget, len(forget_lengths)), (cut_retain, len(retain_lengths))),
        )
    ]
    one = objective(whole, step=2)
    two = [objective(share, step=2) for share in shares]
    torch.testing.assert_close(two[0].loss + two[1].loss, one.loss)
    for key, term in one.terms.items():
        torch.testing.assert_close(two[0].terms[key] + two[1].terms[key], term)
    summed = zip(*(gradients(output.loss, forget, retain) for output in two), strict=True)
    for (first, second), expected in zip(summed, gradients(one.loss, forget, retain), strict=True):
        torch.testing.assert_close(first + second, expected)


def test_the_order_of_tokens_and_rows_does_not_matter(objective: Objective) -> None:
    forget, retain = Side((3, 1, 4), seed=0), Side((2, 5), seed=1)
    inputs = inputs_of(objective, forget, retain)

    def shuffle(tokens: AnswerTokens, renamed: Tensor) -> AnswerTokens:
        order = torch.randperm(len(tokens.row), generator=torch.Generator().manual_seed(2))
        fields: dict[str, Any] = {name: value[order] for name, value in tensors(tokens).items()}
        return replace(tokens, **{**fields, "row": renamed[fields["row"]]})

    shuffled = replace(
        inputs,
        forget=shuffle(inputs.forget, torch.tensor([2, 0, 1])),
        retain=shuffle(inputs.retain, torch.tensor([1, 0])),
        preferred=None if inputs.preferred is None else shuffle(inputs.preferred, torch.tensor([2, 0, 1])),
        gate_logits_forget=forget.gates[[1, 2, 0]],
        gate_logits_retain=retain.gates.flip(0),
    )
    torch.testing.assert_close(objective(shuffled, step=1).loss, objective(inputs, step=1).loss)


def test_half_precision_inputs_are_computed_in_float32(objective: Objective) -> None:
    half = [Side((3, 1, 4), seed=seed, dtype=torch.bfloat16) for seed in (0, 1)]
    full = [Side((3, 1, 4), seed=seed, dtype=torch.bfloat16) for seed in (0, 1)]
    for side in (*full, full[0].preferred):
        for name in ("logits", "logits_ref", "hidden", "hidden_ref", "gates"):
            setattr(side, name, getattr(side, name).float())
    rounded = objective(inputs_of(objective, *half), step=1)
    exact = objective(inputs_of(objective, *full), step=1)
    assert rounded.loss.dtype == torch.float32
    assert torch.equal(rounded.loss, exact.loss)
