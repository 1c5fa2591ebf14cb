"""A stack on a base: it is run wherever an adapter is, and what one member alone opens comes out as from that member."""

from pathlib import Path

import pytest
import torch

from grun.config import AdapterConfig, LinearGateConfig, SumConfig
from grun.data.batches import TokenBatch, collate
from grun.evaluation.gate_values import read_gates
from grun.interventions import Adapter, AdapterStack, StackMember, build_adapter
from grun.lm import FrozenLM, IntervenedLM
from grun.lm.passes import CachedPass, FullPass
from tests.interventions.stacks import same_bits
from tests.lm.shapes import DEPTH, WIDTH, shaped_lm
from tests.lm.test_passes import EXAMPLES, build_cache

LAYERS = {"a": (1, 3), "b": (1, 2), "c": (2, 3)}
PROMPTS = [example.prompt_ids for example in EXAMPLES]


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    return shaped_lm(request.param)


@pytest.fixture
def batch(lm: FrozenLM) -> TokenBatch:
    return collate(EXAMPLES, pad_id=lm.pad_id)


def make_adapter(layers: tuple[int, ...], seed: int) -> Adapter:
    config = AdapterConfig(layers=layers, rank=4, gate=LinearGateConfig())
    return build_adapter(config, hidden_size=WIDTH, num_layers=DEPTH, seed=seed)


@pytest.fixture
def stack(lm: FrozenLM) -> AdapterStack:
    """Three members, each with a threshold between what its two most open prompts read (d has the prompt of a)."""
    members = []
    for seed, (request_id, layers) in enumerate(LAYERS.items()):
        adapter = make_adapter(layers, seed)
        highest = read_gates(FullPass(lm), EXAMPLES, adapter, threshold=2.0, batch_size=6).amax(-1)
        [second, first] = (
            highest[[row for row, example in enumerate(EXAMPLES) if example.digest != "d"]].sort().values[-2:].tolist()
        )
        members.append(StackMember(request_id, adapter, (first + second) / 2))
    return AdapterStack(members, SumConfig())


@torch.no_grad()
def openers(lm: FrozenLM, stack: AdapterStack, batch: TokenBatch) -> list[set[str]]:
    """Which members a row opened, at any block."""
    logits = IntervenedLM(lm, stack).answers(batch).gate_logits
    assert logits is not None
    assert logits.shape == (len(EXAMPLES), len(stack.columns))
    own = {member.request_id: member.threshold for member in stack.members}
    return [
        {request_id for (request_id, _), value in zip(stack.columns, row, strict=True) if value >= (own[request_id] or 0)}
        for row in logits.sigmoid().tolist()
    ]


def test_a_row_is_the_bases_or_its_only_openers_to_the_last_bit(lm: FrozenLM, stack: AdapterStack, batch: TokenBatch) -> None:
    opened, stacked = openers(lm, stack, batch), IntervenedLM(lm, stack)
    assert {len(ids) for ids in opened} >= {0, 1}
    said, texts = stacked.logits(batch), stacked.generate(PROMPTS, max_new_tokens=6).texts
    base = IntervenedLM(lm)
    alone: dict[frozenset[str], IntervenedLM] = {frozenset(): base}
    alone |= {frozenset({m.request_id}): IntervenedLM(lm, m.adapter, threshold=m.threshold) for m in stack.members}
    changed = 0
    for row, ids in enumerate(opened):
        if len(ids) < 2:
            model = alone[frozenset(ids)]
            assert same_bits(said[row], model.logits(batch)[row])
            assert texts[row] == model.generate(PROMPTS, max_new_tokens=6).texts[row]
        changed += bool(ids) and not torch.equal(said[row], base.logits(batch)[row])
    assert changed == sum(bool(ids) for ids in opened)


def test_a_stack_of_one_is_its_adapter(lm: FrozenLM, stack: AdapterStack, batch: TokenBatch) -> None:
    [first, *_] = stack.members
    one, alone = IntervenedLM(lm, stack.without("b").without("c")), IntervenedLM(lm, first.adapter, threshold=first.threshold)
    assert same_bits(one.logits(batch), alone.logits(batch))
    ours, theirs = one.answers(batch), alone.answers(batch)
    assert same_bits(ours.nll, theirs.nll)
    assert ours.gate_logits is not None
    assert theirs.gate_logits is not None
    torch.testing.assert_close(ours.gate_logits, theirs.gate_logits)


@torch.no_grad()
def test_rows_alone_and_padded_on_either_side_are_the_same(lm: FrozenLM, stack: AdapterStack, batch: TokenBatch) -> None:
    stacked = IntervenedLM(lm, stack)
    together, generated = stacked.answers(batch), stacked.generate(PROMPTS, max_new_tokens=5)
    assert together.gate_logits is not None
    assert generated.gate_logits is not None
    torch.testing.assert_close(generated.gate_logits, together.gate_logits, atol=1e-4, rtol=1e-4)
    for row, example in enumerate(EXAMPLES):
        single = stacked.answers(collate([example], pad_id=lm.pad_id))
        torch.testing.assert_close(single.nll, together.nll[together.row == row], atol=1e-4, rtol=1e-4)
        assert stacked.generate([PROMPTS[row]], max_new_tokens=5).texts[0] == generated.texts[row]


@torch.no_grad()
def test_the_cached_pass_gives_the_same_numbers(lm: FrozenLM, stack: AdapterStack, tmp_path: Path) -> None:
    full = FullPass(lm, num_buckets=3).answers(EXAMPLES, stack)
    cached = CachedPass(lm.above(stack.layers[0]), build_cache(lm, tmp_path, cuts=(1,))).answers(EXAMPLES, stack)
    torch.testing.assert_close(cached.nll, full.nll, atol=1e-4, rtol=1e-4)
    assert cached.gate_logits is not None
    assert full.gate_logits is not None
    torch.testing.assert_close(cached.gate_logits, full.gate_logits, atol=1e-4, rtol=1e-4)


def test_with_all_edits_held_back_the_gates_are_read_as_they_would_be_alone(lm: FrozenLM, stack: AdapterStack) -> None:
    """Rows in order, a column a gate: what a revocation cannot have moved."""
    together = read_gates(FullPass(lm), EXAMPLES, stack, threshold=2.0, batch_size=4)
    for member in stack.members:
        columns = [index for index, (request_id, _layer) in enumerate(stack.columns) if request_id == member.request_id]
        alone = read_gates(FullPass(lm), EXAMPLES, member.adapter, threshold=2.0, batch_size=4)
        torch.testing.assert_close(together[:, columns], alone)
