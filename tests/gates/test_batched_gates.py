"""Many gates at once: their logits are each gate's own, as near as the margin says."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grun.config import GateConfig, LinearGateConfig, Mlp3GateConfig, Mlp5GateConfig
from grun.gates import AbstractGate, BatchedGates, LinearGate, build_gate

WIDTH = 48
KINDS: tuple[GateConfig, ...] = (LinearGateConfig(), Mlp3GateConfig(), Mlp5GateConfig())


def gates(kind: GateConfig, count: int, scale: float = 1.0) -> list[AbstractGate]:
    torch.manual_seed(0)
    made = [build_gate(kind, WIDTH) for _ in range(count)]
    with torch.no_grad():
        for gate in made:
            for parameter in gate.parameters():
                parameter.mul_(scale)
    return made


@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 7),
    num_rows=st.integers(1, 9),
    weight_scale=st.sampled_from([0.1, 1.0, 5.0]),
    row_scale=st.sampled_from([0.0, 1e-3, 1.0, 300.0]),
    seed=st.integers(0, 1000),
)
def test_each_logit_is_within_its_margin_of_the_gates_own(
    kind: GateConfig, count: int, num_rows: int, weight_scale: float, row_scale: float, seed: int
) -> None:
    alone = gates(kind, count, weight_scale)
    h = row_scale * torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    screened = BatchedGates(alone)(h)
    assert screened.logits.shape == screened.margin.shape == (num_rows, count)
    own = torch.stack([gate.logits(h) for gate in alone], dim=-1)
    assert ((screened.logits - own).abs() <= screened.margin).all()
    # half of the margin is for the batched computation alone
    assert ((screened.logits - torch.stack([in_double(gate, h) for gate in alone], dim=-1)).abs() <= screened.margin / 2).all()


def in_double(gate: AbstractGate, h: Tensor) -> Tensor:
    """The logits of a gate in float64."""
    units = h.double()
    *hidden, last = gate.linears()
    for linear in hidden:
        units = F.linear(units, linear.weight.double(), linear.bias.double()).relu()
    return F.linear(units, last.weight.double(), last.bias.double()).squeeze(-1)


def test_the_margin_of_one_hyperplane_by_hand() -> None:
    gate = LinearGate(3)
    gate.load_state_dict({"linear.weight": torch.tensor([[2.0, 0.0, 0.0]]), "linear.bias": torch.tensor([-1.0])})
    screened = BatchedGates([gate])(torch.tensor([[3.0, 4.0, 0.0]]))
    assert screened.logits.tolist() == [[5.0]]
    # (3 + 2) 2^-24 (||w|| ||h|| + ||b||) = 5 2^-24 (2 5 + 1), twice, and a little more
    assert screened.margin.item() == pytest.approx(2.01 * 5 * 2.0**-24 * 11)


def test_the_margin_stays_small_where_gates_decide() -> None:
    """A bound that grew to the size of logits would let every member of a stack run."""
    screened = BatchedGates(gates(Mlp3GateConfig(), 3))(torch.randn(8, WIDTH))
    assert screened.margin.max() < 0.05


def test_fewer_bits_in_products_widen_the_margin() -> None:
    batched, h = BatchedGates(gates(Mlp3GateConfig(), 2)), torch.randn(4, WIDTH)
    exact = batched(h).margin
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.allclose(batched(h).margin, exact * 2**13, rtol=0.3)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_copies_are_in_no_state_and_go_where_the_module_goes() -> None:
    batched = BatchedGates(gates(Mlp3GateConfig(), 2))
    assert batched.state_dict() == {}
    assert list(batched.parameters()) == []
    assert {buffer.dtype for buffer in batched.to(torch.float64).buffers()} == {torch.float64}
