"""Cached passes against full ones, on every supported shape of decoder: the same numbers, the same gradients."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grun.config import AdapterConfig, LinearGateConfig
from grun.data.prompts import Example
from grun.errors import CacheError
from grun.interventions import Adapter, build_adapter
from grun.lm import FrozenLM, base_variant
from grun.lm.cache_build import cut_into_shards, finish, probe_cache, write_shard
from grun.lm.passes import CachedPass, FullPass, Pass
from grun.lm.prefix_cache import CacheProbe, PrefixCache, make_spec
from tests.lm.shapes import CONFIGS, DEPTH, WIDTH, shaped_lm

EXAMPLES = (
    Example("a", (5, 9, 11, 42, 7, 30, 8, 21, 50, 1), 7),
    Example("b", (17, 3, 29, 1), 2),
    Example("c", (60, 2, 33, 14, 25, 19, 1), 4),
    Example("d", (5, 9, 11, 42, 7, 30, 8, 33, 1), 7),  # another answer to the prompt of a
    Example("e", (44, 6, 1), 1),  # a prompt of one token has no prefix
    Example("f", (12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 2, 3, 4, 1), 11),  # a prefix longer than any window
)
LAST = DEPTH - 1


def test_no_cache_is_built_from_a_variant_or_serves_one(tmp_path: Path) -> None:
    lm = shaped_lm("llama")
    variant = base_variant(lm, "nf4")
    with pytest.raises(CacheError, match=r"built from the full-precision base, got a base as nf4.*set `cache.mode: off`"):
        build_cache(variant, tmp_path / "variant", cuts=(1,))
    cache = build_cache(lm, tmp_path / "full", cuts=(1,))
    CachedPass(lm.above(1), cache)
    with pytest.raises(CacheError, match=r"serves the full-precision base alone, got a base as nf4"):
        CachedPass(variant.above(1), cache)


def build_cache(lm: FrozenLM, folder: Path, *, cuts: Sequence[int], reference_layers: Sequence[int] = ()) -> PrefixCache:
    spec = make_spec(
        EXAMPLES,
        base_digest=lm.info.digest,
        dtype="float32",
        template={},
        cuts=cuts,
        reference_layers=reference_layers,
        num_layers=DEPTH,
    )
    for number, examples in enumerate(cut_into_shards(EXAMPLES, 2)):
        write_shard(lm, spec, examples, folder, number, batch_size=3)
    finish(folder, spec, CacheProbe(loss_difference=0, gradient_rel_error=0))
    return PrefixCache.open(folder, spec)


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    return shaped_lm(request.param)


@pytest.fixture(scope="module")
def cache(lm: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> PrefixCache:
    return build_cache(lm, tmp_path_factory.mktemp("cache"), cuts=(0, 1, LAST), reference_layers=(2,))


def adapter_at(*layers: int) -> Adapter:
    return build_adapter(
        AdapterConfig(layers=layers, rank=4, gate=LinearGateConfig()), hidden_size=WIDTH, num_layers=DEPTH, seed=0
    )


def gradients(way: Pass, adapter: Adapter, *, read_layer: int) -> Tensor:
    adapter.zero_grad()
    answers = way.answers(EXAMPLES, adapter, keep_logits=True, read_layer=read_layer)
    assert answers.logits is not None
    assert answers.hidden is not None
    assert answers.gate_logits is not None
    # every output takes part: a swapped row or a lost edit would show in one of them
    weights = torch.linspace(0.5, 1.5, len(answers.nll))
    loss = (weights * answers.nll).sum() + answers.logits.square().mean() + answers.hidden.square().mean()
    (loss + answers.gate_logits.square().mean()).backward()
    return torch.cat([p.grad.reshape(-1) for p in adapter.parameters() if p.grad is not None])


@pytest.mark.parametrize("layers", [(0,), (1, 2), (LAST,), (0, LAST)], ids=str)
def test_cached_equals_full(lm: FrozenLM, cache: PrefixCache, layers: tuple[int, ...]) -> None:
    adapter = adapter_at(*layers)
    full, cached = FullPass(lm), CachedPass(lm.above(layers[0]), cache)
    for threshold in (None, 0.5):
        expected, found = (
            way.answers(EXAMPLES, adapter, threshold=threshold, keep_logits=True, read_layer=LAST) for way in (full, cached)
        )
        assert torch.equal(found.row, expected.row)
        assert found.num_rows == expected.num_rows
        for name in ("nll", "logits", "hidden", "gate_logits"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4, msg=name)
    wanted, got = (gradients(way, adapter, read_layer=LAST) for way in (full, cached))
    assert float((wanted - got).norm() / wanted.norm()) < 1e-5


def test_full_batches_of_similar_length_equal_one_batch(lm: FrozenLM) -> None:
    adapter = adapter_at(1, 2)
    one, several = (FullPass(lm, count).answers(EXAMPLES, adapter, keep_logits=True, read_layer=LAST) for count in (1, 3))
    assert torch.equal(one.row, several.row)
    for name in ("nll", "logits", "hidden", "gate_logits"):
        torch.testing.assert_close(getattr(several, name), getattr(one, name), rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("layers", [(1,), (0, 2)], ids=str)
def test_the_reference_needs_no_forward_pass(lm: FrozenLM, cache: PrefixCache, layers: tuple[int, ...]) -> None:
    full, cached = FullPass(lm), CachedPass(lm.above(layers[0]), cache)
    expected, found = (way.reference(EXAMPLES, keep_logits=True, read_layer=2) for way in (full, cached))
    assert torch.equal(found.row, expected.row)
    for name in ("nll", "logits", "hidden"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4, msg=name)


def test_the_base_is_whole_after_its_upper_part_was_used(lm: FrozenLM, cache: PrefixCache) -> None:
    full = FullPass(lm)
    before = full.answers(EXAMPLES, None).nll
    CachedPass(lm.above(1), cache).answers(EXAMPLES, adapter_at(1, 2))
    assert torch.equal(full.answers(EXAMPLES, None).nll, before)
    assert lm.cut is None


def test_one_answer_token_is_served_whatever_it_is(lm: FrozenLM, cache: PrefixCache) -> None:
    first = [Example(e.digest, (*e.prompt_ids, 37), e.num_prompt_tokens) for e in EXAMPLES]
    adapter = adapter_at(1, 2)
    full, cached = (way.answers(first, adapter) for way in (FullPass(lm), CachedPass(lm.above(1), cache)))
    torch.testing.assert_close(cached.nll, full.nll, rtol=1e-4, atol=1e-4)
    with pytest.raises(CacheError, match="a prefix cache serves only the rows it was built from"):
        cache.row(Example("x", (5, 9, 11, 42, 7, 30, 8, 37, 38), 7))


def test_the_probe_finds_no_difference(lm: FrozenLM, cache: PrefixCache) -> None:
    probe = probe_cache(lm, cache, EXAMPLES)
    assert probe.agrees("float32")
    assert probe.gradient_rel_error < 1e-5
