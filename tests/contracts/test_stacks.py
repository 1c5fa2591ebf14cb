"""What a stack must do with every kind of gate and every composition."""

import itertools
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from grun.config import CompositionConfig, GateConfig, MaxGateConfig, NoGateConfig, ScaledConfig, SumConfig
from grun.interventions import COMPOSITIONS, Adapter
from tests.interventions.stacks import build, rows, same_bits, stack_of

GATES = get_args(get_args(GateConfig)[0])
LEARNING = tuple(kind for kind in GATES if kind is not NoGateConfig)
KINDS = get_args(get_args(CompositionConfig)[0])
REPEATABLE = tuple(kind for kind in KINDS if kind is not ScaledConfig)
"""Those where a member that acts alone acts as if it were alone; `scaled` counts the others."""

each_gate = pytest.mark.parametrize("gate", LEARNING, ids=lambda kind: kind.__name__)
each_composition = pytest.mark.parametrize("composition", KINDS, ids=lambda kind: kind.__name__)
each_repeatable = pytest.mark.parametrize("composition", REPEATABLE, ids=lambda kind: kind.__name__)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def test_every_composition_is_registered() -> None:
    assert set(COMPOSITIONS) == set(KINDS)


def values_at(adapter: Adapter, h: Tensor, layer: int = 2) -> Tensor:
    return adapter.at(layer).gate.logits(h.float()).sigmoid()


@each_gate
@each_composition
@each_dtype
def test_where_all_gates_are_closed_it_is_the_base(
    gate: type, composition: Callable[[], CompositionConfig], dtype: torch.dtype
) -> None:
    stack, h = stack_of([build(seed, gate=gate()) for seed in range(3)], 0.999, composition()), rows(8).to(dtype)
    h[0, 1:] = -0.0
    assert same_bits(stack.at(2)(h).hidden, h)
    assert not torch.equal(stack_of([member.adapter for member in stack.members], None, composition()).at(2)(h).hidden, h)


@each_repeatable
@pytest.mark.parametrize("gate", GATES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("threshold", [None, 0.5, 1.0])
@each_dtype
def test_a_stack_of_one_is_its_member(
    gate: type, composition: Callable[[], CompositionConfig], threshold: float | None, dtype: torch.dtype
) -> None:
    adapter, h = build(0, gate=gate()), rows(8).to(dtype)
    stacked, alone = stack_of([adapter], threshold, composition()).at(2)(h), adapter.at(2)(h, threshold=threshold)
    assert same_bits(stacked.hidden, alone.hidden)
    assert (stacked.gate_logits is None) == (alone.gate_logits is None)
    if stacked.gate_logits is not None and alone.gate_logits is not None:
        torch.testing.assert_close(stacked.gate_logits, alone.gate_logits.unsqueeze(-1))


@each_repeatable
@each_gate
@each_dtype
def test_where_one_member_alone_is_open_the_row_is_that_members(
    gate: type, composition: Callable[[], CompositionConfig], dtype: torch.dtype
) -> None:
    """The thresholds are values that occur, to the last bit: rounding in the batched gates must not decide."""
    adapters, h = [build(seed, gate=gate()) for seed in range(4)], rows(32).to(dtype)
    values = torch.stack([values_at(adapter, h) for adapter in adapters], dim=-1)
    thresholds: list[float | None] = values.sort(0).values[-8].tolist()  # 8 of 32 rows open each
    is_open = values >= torch.tensor(thresholds)
    stacked = stack_of(adapters, thresholds, composition()).at(2)(h)
    alone = [adapter.at(2)(h, threshold=thresholds[index]).hidden for index, adapter in enumerate(adapters)]
    assert is_open.sum(0).tolist() == [8] * 4
    single = [(row, int(is_open[row].nonzero())) for row in range(32) if is_open[row].sum() == 1]
    assert len(single) > 4
    assert all(same_bits(stacked.hidden[row], alone[member][row]) for row, member in single)
    closed = ~is_open.any(-1)
    assert closed.any()
    assert same_bits(stacked.hidden[closed], h[closed])


@each_composition
def test_members_of_different_kinds_ranks_blocks_and_thresholds(composition: Callable[[], CompositionConfig]) -> None:
    """Batched by shape or not at all, each column holds the gate that `columns` names."""
    kinds = list(itertools.chain(GATES, GATES))
    adapters = [
        build(index, gate=kind(), rank=1 + index % 3, layers=(0, 2) if index % 2 else (1, 2)) for index, kind in enumerate(kinds)
    ]
    stack, h = stack_of(adapters, [None, 0.5, 0.2, 0.4] * 2, composition()), rows(5)
    assert stack.layers == (0, 1, 2)
    by_request = dict(zip(stack.request_ids, adapters, strict=True))
    for layer, threshold in itertools.product(stack.layers, (None, 2.0)):  # 2.0: all are screened and none runs
        edited = stack.at(layer)(h, threshold=threshold)
        columns = [request_id for request_id, block in stack.columns if block == layer]
        assert edited.gate_logits is not None
        assert edited.gate_logits.shape == (5, len(columns))
        own = torch.stack([by_request[request_id].at(layer).gate.logits(h) for request_id in columns], dim=-1)
        torch.testing.assert_close(edited.gate_logits, own)
        assert bool((edited.hidden != h).any()) == (threshold is None)


@each_composition
def test_rows_do_not_know_of_each_other(composition: Callable[[], CompositionConfig]) -> None:
    adapters, h = [build(seed) for seed in range(3)], rows(16)
    stack = stack_of(adapters, 0.5, composition())
    together = stack.at(0)(h)
    for row in range(16):
        torch.testing.assert_close(stack.at(0)(h[row : row + 1]).hidden[0], together.hidden[row])


def test_defaults_are_the_documented_ones() -> None:
    assert (ScaledConfig().a, ScaledConfig().b) == (0.6, 0.6)
    assert (SumConfig().kind, MaxGateConfig().kind) == ("sum", "max_gate")
