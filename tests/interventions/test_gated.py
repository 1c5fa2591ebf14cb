"""The gated intervention and the adapter that holds several."""

import itertools

import pytest
import torch
from torch import Tensor

from grun.config import AdapterConfig, GateConfig, LinearGateConfig, Mlp3GateConfig, Mlp5GateConfig, NoGateConfig
from grun.errors import ConfigError
from grun.gates import LinearGate
from grun.interventions import Adapter, GatedIntervention, LoReFT, build_adapter, check_fits

HIDDEN_SIZE = 16
RAW = "rotate_layer.parametrizations.weight.original"
GATES = pytest.mark.parametrize("gate", [LinearGateConfig(), Mlp3GateConfig(), Mlp5GateConfig()], ids=lambda gate: gate.kind)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def build(gate: GateConfig | None = None, *, layers: tuple[int, ...] = (0, 2), rank: int = 3, seed: int = 0) -> Adapter:
    config = AdapterConfig(layers=layers, rank=rank, gate=gate or LinearGateConfig())
    return build_adapter(config, hidden_size=HIDDEN_SIZE, num_layers=4, seed=seed)


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def gated() -> GatedIntervention:
    return build().at(0)


def with_gate_logits(gated: GatedIntervention) -> GatedIntervention:
    """Let the gate logit be the first coordinate of h."""
    state = {"linear.weight": torch.eye(HIDDEN_SIZE)[:1], "linear.bias": torch.zeros(1)}
    gated.gate.load_state_dict(state)
    return gated


def test_reference_example() -> None:
    gate, loreft = LinearGate(3), LoReFT(3, 1)
    gate.load_state_dict({"linear.weight": torch.tensor([[0.1, -0.2, 0.3]]), "linear.bias": torch.tensor([0.05])})
    loreft.set_basis(torch.tensor([[0.0], [0.6], [0.8]]))
    loreft.learned_source.load_state_dict({"weight": torch.tensor([[0.5, 0.0, -1.0]]), "bias": torch.tensor([0.25])})
    h = torch.tensor([[1.0, 2.0, 3.0]])
    edited = GatedIntervention(gate, loreft)(h)
    assert (loreft.edit(h) @ loreft.basis).item() == pytest.approx(-5.85, abs=1e-6)
    assert edited.gate_logits is not None
    assert edited.gate_logits.tolist() == pytest.approx([0.65], abs=1e-6)
    assert edited.gate_logits.sigmoid().item() == pytest.approx(0.6570104627, abs=1e-7)
    assert edited.hidden[0].tolist() == pytest.approx([1.0, -0.3061067240, -0.0748089653], abs=1e-6)


@GATES
def test_edit_is_the_gate_value_times_the_ungated_edit(gate: GateConfig) -> None:
    gated, h = build(gate).at(2), rows(8)
    edited = gated(h)
    values = gated.gate.logits(h).sigmoid()
    assert edited.gate_logits is not None
    assert torch.equal(edited.gate_logits.sigmoid(), values)
    torch.testing.assert_close(edited.hidden - h, values[:, None] * gated.intervention.edit(h), rtol=0, atol=1e-5)


@DTYPES
@pytest.mark.parametrize("threshold", [None, 0.5, 1.0])
def test_without_a_gate_it_is_the_published_loreft(dtype: torch.dtype, threshold: float | None) -> None:
    h = rows(8).to(dtype)
    ungated = build(NoGateConfig())
    edited = ungated.at(2)(h, threshold=threshold)
    assert torch.equal(edited.hidden, ungated.at(2).intervention(h))
    assert edited.gate_logits is None
    assert ungated.gated_layers == ()
    assert build().gated_layers == (0, 2)


@DTYPES
def test_without_a_gate_it_is_one_that_is_forced_open(dtype: torch.dtype) -> None:
    gated, ungated, h = build(), build(NoGateConfig()), rows(8).to(dtype)
    for layer, other in ungated:
        other.intervention.load_state_dict(gated.at(layer).intervention.state_dict())
        forced = gated.at(layer)
        forced.gate.load_state_dict({"linear.weight": torch.zeros(1, HIDDEN_SIZE), "linear.bias": torch.tensor([1e4])})
        assert torch.equal(other(h).hidden, forced(h).hidden)
    # D r + r for W and b and D r for the raw basis, in two blocks
    assert sum(p.numel() for p in ungated.parameters()) == 2 * (HIDDEN_SIZE * 3 + 3 + HIDDEN_SIZE * 3)


@DTYPES
def test_a_closed_gate_returns_the_row_bit_for_bit(gated: GatedIntervention, dtype: torch.dtype) -> None:
    h = rows(64).to(dtype)
    h[:, 0] = torch.tensor([-1.0, 1.0]).repeat(32)  # closed, open, ...
    h[0, 1:], h[2, 3] = -0.0, torch.inf  # adding 0 times the edit would lose the signs, and make NaN of infinity
    edited = with_gate_logits(gated)(h, threshold=0.5).hidden
    assert edited.dtype == dtype
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(edited[::2].view(bits), h[::2].view(bits))
    assert (edited[1::2] != h[1::2]).any(dim=-1).all()


@DTYPES
def test_open_rows_do_not_depend_on_the_threshold(gated: GatedIntervention, dtype: torch.dtype) -> None:
    h = rows(64).to(dtype)
    soft, hard = with_gate_logits(gated)(h), gated(h, threshold=0.5)
    is_open = h[:, 0] >= 0
    assert is_open.any()
    assert not is_open.all()
    assert torch.equal(hard.hidden[is_open], soft.hidden[is_open])
    assert torch.equal(hard.hidden[~is_open], h[~is_open])
    assert hard.gate_logits is not None
    assert soft.gate_logits is not None
    assert torch.equal(hard.gate_logits, soft.gate_logits)


def test_a_value_at_the_threshold_is_open(gated: GatedIntervention) -> None:
    h = rows(2)
    h[:, 0] = torch.tensor([0.0, -1e-6])  # gate values 0.5 and just below
    edited = with_gate_logits(gated)(h, threshold=0.5).hidden
    assert not torch.equal(edited[0], h[0])
    assert torch.equal(edited[1], h[1])


def test_soft_gates_change_every_row(gated: GatedIntervention) -> None:
    h = rows(64)
    edited = gated(h).hidden
    assert (edited != h).any(dim=-1).all()
    assert torch.equal(gated(h, threshold=0.0).hidden, edited)


@GATES
def test_gradient_reaches_every_parameter(gate: GateConfig) -> None:
    adapter, h = build(gate), rows(32)
    loss = torch.stack([gated(h).hidden.square().sum() for _, gated in adapter]).sum()
    names, parameters = zip(*adapter.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    assert [name for name, gradient in zip(names, gradients, strict=True) if not gradient.any()] == []


def test_decay_leaves_the_basis_alone_and_reaches_everything_else() -> None:
    adapter = build(Mlp3GateConfig())
    groups = adapter.parameter_groups(weight_decay=0.5)
    decayed, kept = (group["params"] for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert isinstance(decayed, list)
    assert isinstance(kept, list)
    raw = [adapter.get_parameter(f"interventions.{layer}.intervention.{RAW}") for layer in adapter.layers]
    assert {id(parameter) for parameter in kept} == {id(parameter) for parameter in raw}
    assert {id(parameter) for parameter in decayed + kept} == {id(parameter) for parameter in adapter.parameters()}
    assert len(decayed + kept) == len(list(adapter.parameters()))


def test_basis_survives_an_optimizer_with_decay() -> None:
    adapter, h = build(), rows(32)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(weight_decay=0.5), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack([gated(h).hidden.square().mean() for _, gated in adapter]).sum())
        optimizer.step()
    for _, gated in adapter:
        basis = gated.intervention.basis
        torch.testing.assert_close(basis.T @ basis, torch.eye(3), rtol=0, atol=1e-5)


@GATES
def test_the_seed_alone_decides(gate: GateConfig) -> None:
    state = torch.get_rng_state()
    first = build(gate, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = build(gate, seed=3).state_dict(), build(gate, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, value in first.items() if value.is_floating_point()]
    assert all(not torch.equal(first[name], other[name]) for name in drawn)


def test_blocks_are_drawn_independently() -> None:
    adapter = build(layers=(0, 1, 2))
    for one, other in itertools.combinations(adapter.layers, 2):
        assert not torch.equal(adapter.at(one).intervention.basis, adapter.at(other).intervention.basis)


def test_adapter_goes_from_shallow_to_deep() -> None:
    single = [build(layers=(layer,)).at(layer) for layer in (0, 1, 2)]
    adapter = Adapter({11: single[0], 2: single[1], 9: single[2]})
    assert adapter.layers == (2, 9, 11)
    assert [layer for layer, _ in adapter] == [2, 9, 11]
    assert adapter.at(11) is single[0]
    assert adapter.hidden_size == HIDDEN_SIZE


def test_loading_is_strict() -> None:
    adapter, state = build(), build(seed=1).state_dict()
    name = "interventions.2.gate.linear.bias"
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*interventions\.2\.gate\.linear\.bias"):
        adapter.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*scale"):
        adapter.load_state_dict({**state, "interventions.2.gate.scale": torch.ones(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        adapter.load_state_dict(build(rank=2).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key\(s\)"):
        adapter.load_state_dict(build(Mlp3GateConfig()).state_dict())


def test_relative_depths_and_bounds() -> None:
    assert check_fits(AdapterConfig(), hidden_size=64, num_layers=32) == (20, 25, 31)
    with pytest.raises(ConfigError, match=r"lie in 0\.\.3, the blocks of this base, got \[4, 9\]"):
        check_fits(AdapterConfig(layers=(0, 4, 9)), hidden_size=64, num_layers=4)
    with pytest.raises(ConfigError, match=r"got rank 17 and hidden size 16"):
        build(rank=17)
    build(rank=16)
