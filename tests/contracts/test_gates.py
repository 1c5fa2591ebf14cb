"""What every gate kind must do."""

from typing import get_args

import pytest
import torch

from grun.config import GateConfig, NoGateConfig
from grun.gates import GATES, AbstractGate, build_gate

KINDS = get_args(get_args(GateConfig)[0])
LEARNING = tuple(kind for kind in KINDS if kind is not NoGateConfig)
WIDTH = 16


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def gate(request: pytest.FixtureRequest) -> AbstractGate:
    torch.manual_seed(0)
    return build_gate(request.param(), WIDTH)


@pytest.fixture(params=LEARNING, ids=lambda kind: kind.__name__)
def learning_gate(request: pytest.FixtureRequest) -> AbstractGate:
    torch.manual_seed(0)
    return build_gate(request.param(), WIDTH)


def test_every_kind_is_registered() -> None:
    assert set(GATES) == set(KINDS)


def test_one_logit_per_hidden_state(gate: AbstractGate) -> None:
    h = torch.randn(2, 5, WIDTH)
    logits = gate.logits(h)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(logits[1, 3], gate.logits(h[1, 3]))


def test_starts_about_half_open(learning_gate: AbstractGate) -> None:
    values = learning_gate.logits(torch.randn(64, WIDTH)).sigmoid()
    assert 0.3 < values.mean() < 0.7
    assert values.std() > 0


def test_a_gate_learns_if_it_has_parameters(gate: AbstractGate) -> None:
    assert gate.learns == bool(list(gate.parameters())) == bool(gate.state_dict())


def test_every_parameter_learns(learning_gate: AbstractGate) -> None:
    gradients = torch.autograd.grad(learning_gate.logits(torch.randn(64, WIDTH)).sum(), tuple(learning_gate.parameters()))
    assert all(gradient.any() for gradient in gradients)


def test_half_precision_hidden_states_are_computed_in_float32(gate: AbstractGate) -> None:
    h = torch.randn(4, WIDTH).bfloat16()
    logits = gate.logits(h)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, gate.logits(h.float()))
    assert {parameter.dtype for parameter in gate.parameters()} <= {torch.float32}


def test_its_linears_with_relu_between_them_are_the_gate(gate: AbstractGate) -> None:
    """Stacks compute many gates from these at once; a gate without any is always open."""
    h = torch.randn(4, WIDTH)
    *hidden, last = gate.linears() or (None,)
    if last is None:
        assert torch.equal(gate.logits(h), torch.full((4,), torch.inf))
        return
    units = h
    for linear in hidden:
        assert linear is not None
        units = linear(units).relu()
    assert torch.equal(last(units).squeeze(-1), gate.logits(h))
    assert {id(p) for linear in gate.linears() for p in linear.parameters()} == {id(p) for p in gate.parameters()}
