"""The adapter stack: numbers worked by hand, members that come and go, and what runs at all."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grun.config import CompositionConfig, MaxGateConfig, Mlp3GateConfig, NoGateConfig, ScaledConfig, SumConfig
from grun.interventions import Adapter, AdapterStack, Change, StackMember
from grun.interventions.composition import compose
from grun.interventions.gated import GatedIntervention
from tests.interventions.stacks import HIDDEN_SIZE, build, reading, rows, same_bits, stack_of


def change(amount: list[float], value: float, *, is_open: bool = True) -> Change:
    """A change of one row."""
    return Change(torch.tensor([amount]), torch.tensor([value]), torch.tensor([is_open]), torch.tensor([0.0]))


CHANGES = (change([1.0, -2.0], 0.6), change([0.5, 4.0], 0.9), change([100.0, 100.0], 0.0, is_open=False))


@pytest.mark.parametrize(
    ("composition", "num_members", "expected"),
    [
        (SumConfig(), 3, [1.5, 2.0]),
        (MaxGateConfig(), 3, [0.5, 4.0]),
        (ScaledConfig(), 3, [1.5 * 2.4, 2.0 * 2.4]),
        (ScaledConfig(), 6, [1.5 * 4.2, 2.0 * 4.2]),  # N is that of the stack, whoever acts here
        (ScaledConfig(a=0.0, b=0.5), 3, [0.75, 1.0]),
    ],
)
def test_three_changes_by_hand(composition: CompositionConfig, num_members: int, expected: list[float]) -> None:
    assert compose(CHANGES, composition, num_members=num_members)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("composition", [SumConfig(), MaxGateConfig()], ids=lambda config: config.kind)
def test_a_closed_change_leaves_even_the_sign_of_a_zero(composition: CompositionConfig) -> None:
    alone = change([-0.0, 0.0], 0.6)
    for changes in [(alone,), (alone, CHANGES[2]), (CHANGES[2], alone)]:
        assert same_bits(compose(changes, composition, num_members=2), torch.tensor([[-0.0, 0.0]]))


@pytest.mark.parametrize(("num_members", "factor"), [(1, 1.2), (2, 1.8), (3, 2.4), (6, 4.2)])
def test_the_official_factor_grows_with_the_stack(num_members: int, factor: float) -> None:
    adapters = [build(seed, gate=NoGateConfig()) for seed in range(num_members)]
    h = rows(4)
    edits = torch.stack([adapter.at(0).intervention.edit(h) for adapter in adapters]).sum(0)
    edited = stack_of(adapters, None, ScaledConfig()).at(0)(h).hidden
    torch.testing.assert_close(edited, h + factor * edits)


def test_of_equally_open_gates_the_earlier_acts() -> None:
    equal = (change([1.0], 0.7), change([2.0], 0.7))
    assert compose(equal, MaxGateConfig(), num_members=2).tolist() == [[1.0]]
    assert compose(equal[::-1], MaxGateConfig(), num_members=2).tolist() == [[2.0]]


def test_each_row_has_its_own_most_open_gate() -> None:
    adapters, h = [reading(build(seed), seed) for seed in range(3)], rows(32)
    edited = stack_of(adapters, None, MaxGateConfig()).at(2)(h).hidden
    best = h[:, :3].argmax(-1)
    assert set(best.tolist()) == {0, 1, 2}
    alone = torch.stack([adapter.at(2)(h).hidden for adapter in adapters])
    assert same_bits(edited, alone[best, torch.arange(32)])


def test_members_read_the_same_hidden_state() -> None:
    """One after the other, the second would read what the first left."""
    adapters, h = [build(seed) for seed in range(2)], rows(8)
    changes = [adapter.at(0)(h).hidden - h for adapter in adapters]
    edited = stack_of(adapters, None).at(0)(h).hidden
    torch.testing.assert_close(edited, h + changes[0] + changes[1])
    in_turn = adapters[1].at(0)(adapters[0].at(0)(h).hidden).hidden
    assert not torch.allclose(edited, in_turn, atol=1e-3)


@given(
    st.lists(st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6),
    st.sampled_from([SumConfig(), MaxGateConfig()]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 3),
)
def test_revoking_a_member_leaves_rows_that_it_did_not_open_as_they_were(
    pattern: list[list[float]], composition: CompositionConfig, dtype: torch.dtype, revoked: int
) -> None:
    """Whatever the others do there: even a row that several members edit keeps every bit."""
    h = rows(len(pattern)).to(dtype)
    h[:, :4] = torch.tensor(pattern)  # who is open where
    h[:, 5] = -0.0
    stack = stack_of([reading(build(seed), seed) for seed in range(4)], 0.6, composition)
    kept = h[:, revoked] < 0
    others = stack.without(f"r{revoked}")
    for layer in stack.layers:
        before, after = stack.at(layer)(h).hidden, others.at(layer)(h).hidden
        assert same_bits(before[kept], after[kept])
        assert not kept.logical_not().any() or composition.kind == "max_gate" or not same_bits(before[~kept], after[~kept])


def counting(monkeypatch: pytest.MonkeyPatch) -> list[GatedIntervention]:
    """Which interventions run on their own."""
    ran: list[GatedIntervention] = []
    own = GatedIntervention.change

    def change(self: GatedIntervention, h: Tensor, **kwargs: Any) -> Change:
        ran.append(self)
        return own(self, h, **kwargs)

    monkeypatch.setattr(GatedIntervention, "change", change)
    return ran


def test_closed_members_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = [reading(build(seed), seed) for seed in range(6)]
    stack, h = stack_of(adapters, 0.6), rows(8)
    h[:, :6] = -1.0
    h[3, 4] = 1.0
    ran = counting(monkeypatch)
    stack.at(0)(h)
    assert ran == [adapters[4].at(0)]
    ran.clear()
    stack.at(0)(h, threshold=2.0)
    assert ran == []
    stack_of(adapters, [None, 0.6, 0.0, 0.6, 0.6, 0.6]).at(0)(h)
    assert ran == [adapters[0].at(0), adapters[2].at(0), adapters[4].at(0)]


def test_a_row_that_is_no_number_is_left_to_its_own_gate() -> None:
    adapters, h = [build(seed, gate=Mlp3GateConfig()) for seed in range(2)], rows(3)
    h[1, 0], h[2, 0] = torch.nan, torch.inf
    stack = stack_of(adapters, [0.0, 2.0])
    assert same_bits(stack.at(0)(h).hidden, adapters[0].at(0)(h, threshold=0.0).hidden)


@pytest.mark.parametrize("threshold", [1e-6, 0.3, 0.5, 0.9, 0.999, 1 - 2**-24, 1.0])
def test_a_threshold_that_is_just_reached_is_reached(threshold: float) -> None:
    """The sigmoid rounds: near 1 many logits share a value, and all of them are open."""
    exact = math.log(threshold) - math.log1p(-threshold) if threshold < 1 else 17.0
    h = torch.zeros(120, HIDDEN_SIZE)
    h[:, 0] = exact + torch.cat([torch.linspace(-1e-5, 1e-5, 60), torch.linspace(-1, 1, 60)])
    adapter = reading(build(0), 0)
    stacked = stack_of([adapter], threshold).at(0)
    for row in h.split(1):
        assert same_bits(stacked(row).hidden, adapter.at(0)(row, threshold=threshold).hidden)


def test_a_row_that_no_gate_opens_is_the_bases_whatever_the_factor() -> None:
    """A factor below 0 makes +0.0 of "nothing"."""
    h = rows(2)
    h[:, 0] = torch.tensor([1.0, -1.0])  # open, closed
    h[1, 1:] = -0.0
    edited = stack_of([reading(build(0), 0)], 0.5, ScaledConfig(a=-1.0, b=0.0)).at(0)(h).hidden
    assert same_bits(edited[1], h[1])
    assert not torch.equal(edited[0], h[0])


def test_a_member_that_runs_shows_its_own_logits_to_the_last_bit() -> None:
    """What is reported is what decided."""
    adapters, h = [build(seed, gate=Mlp3GateConfig()) for seed in range(5)], rows(33)
    logits = stack_of(adapters, 0.0).at(0)(h).gate_logits
    assert logits is not None
    assert same_bits(logits, torch.stack([adapter.at(0).gate.logits(h) for adapter in adapters], dim=-1))
    screened = stack_of(adapters, 2.0).at(0)(h).gate_logits
    assert screened is not None
    assert not torch.equal(screened, logits)


def test_one_threshold_may_take_the_place_of_all() -> None:
    adapters, h = [build(seed) for seed in range(3)], rows(8)
    stack = stack_of(adapters, [0.1, 0.5, None])
    assert same_bits(stack.at(0)(h, threshold=2.0).hidden, h)
    assert same_bits(stack.at(0)(h, threshold=0.5).hidden, stack_of(adapters, 0.5).at(0)(h).hidden)


def test_what_opened_is_told_by_each_members_threshold() -> None:
    stack = stack_of([build(0), build(1)], [0.4, 0.8])
    assert stack.columns == (("r0", 0), ("r1", 0), ("r0", 2), ("r1", 2))
    values = torch.tensor([[0.3, 0.7, 0.3, 0.7], [0.3, 0.85, 0.3, 0.7], [0.3, 0.3, 0.45, 0.3]])
    opened = stack.opened(values.logit())
    assert opened is not None
    assert opened.tolist() == [False, True, True]
    everyones = stack.opened(values.logit(), 0.45 - 1e-6)
    assert everyones is not None
    assert everyones.tolist() == [True, True, True]
    assert stack_of([build(0), build(1)], [0.4, None]).opened(values.logit()) is None


def test_members_come_and_go_in_order() -> None:
    adapters = [build(seed) for seed in range(3)]
    stack = stack_of(adapters[:2], 0.6)
    grown = stack.with_member(StackMember("new", adapters[2], 0.7))
    assert grown.request_ids == ("r0", "r1", "new")
    assert stack.request_ids == ("r0", "r1")
    assert grown.without("r0").request_ids == ("r1", "new")
    assert grown.without("r0").members[1].adapter is adapters[2]
    assert grown.composition == stack.composition
    with pytest.raises(AssertionError, match="unknown is not in the stack"):
        grown.without("unknown")
    with pytest.raises(AssertionError, match="in a stack once"):
        grown.with_member(StackMember("r1", adapters[2], 0.7))


def test_the_factor_of_scaled_follows_members_that_go() -> None:
    adapters, h = [build(seed, gate=NoGateConfig()) for seed in range(3)], rows(4)
    shrunk = stack_of(adapters, None, ScaledConfig()).without("r1").without("r2")
    torch.testing.assert_close(shrunk.at(0)(h).hidden, h + 1.2 * adapters[0].at(0).intervention.edit(h))


def test_the_state_is_the_members_and_nothing_else() -> None:
    adapters = [build(seed, gate=Mlp3GateConfig()) for seed in range(2)]
    stack = stack_of(adapters)
    assert set(stack.state_dict()) == {f"adapters.{i}.{name}" for i in range(2) for name in adapters[i].state_dict()}
    assert {id(p) for p in stack.parameters()} == {id(p) for adapter in adapters for p in adapter.parameters()}


def test_a_copy_is_whole() -> None:
    stack, h = stack_of([build(0), build(1)], None), rows(4)
    twin = copy.deepcopy(stack)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.zero_()
    assert not torch.equal(twin.at(0)(h).hidden, h)
    assert isinstance(twin, AdapterStack)
    assert isinstance(twin.members[0].adapter, Adapter)
    assert twin.members[0].adapter is twin.adapters[0]
