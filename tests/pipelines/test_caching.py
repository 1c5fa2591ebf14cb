"""The prefix cache of a run: planned, built once, checked; listed and pruned. Tasks run in this process, not on a cluster."""

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grun.config import Recipe
from grun.data.prompts import PromptEncoder
from grun.errors import CacheError
from grun.evaluation.evaluate import AdapterScorer, Scorer
from grun.evaluation.sets import evaluation_sets
from grun.interventions import build_adapter
from grun.lm import CachedPass, FullPass, Pass, PrefixCache, load_frozen_lm, suffix
from grun.lm.prefix_cache import CACHE_FILE, shard_path
from grun.training import TorchEngine, build_task, fit
from pipelines import cache as cache_verb
from pipelines import caching
from pipelines.cache_locks import building
from pipelines.caching import RECORDS_FILE, ensure_cache, plan_cache
from pipelines.loaded import loaded_base
from pipelines.prepared import Prepared, plan, read_prepared, write_prepared
from pipelines.tasks import HelperTask
from tune_spaces import SPACES


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Run tasks in this process, and keep the names of their functions."""
    names: list[str] = []

    def inline(_recipe: Recipe, tasks: Sequence[HelperTask], **_options: object) -> list[Any]:
        names.extend(task.function.__name__ for task in tasks)
        return [task.function(**task.arguments, progress=tmp_path / "progress") for task in tasks]

    monkeypatch.setattr(caching, "run_tasks", inline)
    return names


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], tmp_path: Path, ran: list[str]) -> Recipe:
    return make_recipe(output=str(tmp_path / "outputs"), cache={"mode": "require", "sequences_per_shard": 15})


@pytest.fixture
def prepared(recipe: Recipe) -> Prepared:
    return plan(recipe)


def test_a_cache_is_built_once_and_used_by_whoever_asks_next(recipe: Recipe, prepared: Prepared, ran: list[str]) -> None:
    folder = ensure_cache(recipe, prepared, [recipe])
    assert folder is not None
    assert ran.count("build_shard") > 1
    assert ran.count("finish_cache") == 1
    count = len(ran)
    assert ensure_cache(recipe, prepared, [recipe]) == folder
    assert len(ran) == count


@pytest.mark.parametrize("train", [{}, {"augmentation": {"variants": 2}}], ids=["plain", "wrapped"])
def test_a_cache_names_the_records_that_it_was_made_from(recipe: Recipe, prepared: Prepared, train: dict[str, Any]) -> None:
    """A purge finds by it what holds a request's text."""
    varied = recipe.replace({"train": train})
    folder = ensure_cache(varied, prepared, [varied])
    assert folder is not None
    named = set(json.loads((folder / RECORDS_FILE).read_text(encoding="utf-8")))
    splits = prepared.splits
    assert {record.digest for record in (*splits.forget, *splits.retain)} <= named
    assert named <= {record.digest for record in (*splits.forget, *splits.retain, *splits.holdout)}


def test_two_that_want_the_same_cache_build_it_once(recipe: Recipe, prepared: Prepared, ran: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = {future.result() for future in [pool.submit(ensure_cache, recipe, prepared, [recipe]) for _ in range(2)]}
    assert len(folders) == 1
    assert ran.count("finish_cache") == 1


@pytest.mark.parametrize("variants", [0, 2])
def test_the_cache_holds_all_that_training_and_evaluation_run(recipe: Recipe, prepared: Prepared, variants: int) -> None:
    recipe = recipe.replace({"train": {"augmentation": {"variants": variants}}})
    folder = ensure_cache(recipe, prepared, [recipe])
    assert folder is not None
    cache = PrefixCache.open(folder)
    lm = load_frozen_lm(prepared.base)
    task = build_task(recipe, prepared.splits, prepared.request, lm)
    for step in range(6):
        batch = task.sampler.batch(step)
        assert all(example in cache for example in (*batch.forget, *batch.retain))
    engine = TorchEngine(CachedPass(load_frozen_lm(prepared.base, cut=1), cache))
    whole = build_task(recipe, prepared.splits, prepared.request, lm)
    for base, each in ((engine, task), (TorchEngine(FullPass(lm)), whole)):
        fit(base, each.adapter, each.objective, each.sampler, each.optimizer)
    for name, value in whole.adapter.state_dict().items():
        torch.testing.assert_close(task.adapter.state_dict()[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        {"forget": {"kind": "negative"}},
        {"forget": {"kind": "dpo", "preferred": "alternative"}, "invariance": {}},
        {"forget": {"kind": "undial"}, "invariance": {"path": "environment.jsonl"}},
    ],
    ids=["negative", "altpo", "undial"],
)
def test_the_cache_holds_other_answers_and_environments_too(
    recipe: Recipe, objective: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a path is the driver's, workers read what it has prepared
    (tmp_path / "environment.jsonl").write_text('{"question": "What is 2 plus 2?", "answer": "4."}\n', encoding="utf-8")
    recipe = recipe.replace({"objective": {**objective, "retain": {"kind": "ce"}}})
    prepared = plan(recipe)
    folder = ensure_cache(recipe, prepared, [recipe])
    assert folder is not None
    write_prepared(prepared)
    monkeypatch.chdir("/")
    request, splits = read_prepared(prepared.folder)
    assert splits == prepared.splits
    cache, lm = PrefixCache.open(folder), load_frozen_lm(prepared.base)
    tasks = [build_task(recipe, splits, request, lm) for _ in range(2)]
    bases: tuple[Pass, ...] = (FullPass(lm), CachedPass(load_frozen_lm(prepared.base, cut=1), cache))
    for base, task in zip(bases, tasks, strict=True):
        fit(TorchEngine(base), task.adapter, task.objective, task.sampler, task.optimizer)
    for name, value in tasks[0].adapter.state_dict().items():
        torch.testing.assert_close(tasks[1].adapter.state_dict()[name], value, rtol=0, atol=5e-6)


def test_an_environment_makes_another_request_folder_and_another_trajectory(recipe: Recipe, tmp_path: Path) -> None:
    def prepared_with(text: str) -> tuple[Path, str]:
        path = tmp_path / "environment.jsonl"
        path.write_text(text, encoding="utf-8")
        prepared = plan(varied := recipe.replace({"objective": {"invariance": {"path": str(path)}}}))
        task = build_task(varied, prepared.splits, prepared.request, load_frozen_lm(prepared.base))
        return prepared.folder, task.trajectory

    one, other = (prepared_with(f'{{"text": "Rain falls on {place} all day."}}') for place in ("Harn", "Oost"))
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_a_sweep_scores_its_adapters_from_the_cache(recipe: Recipe, prepared: Prepared) -> None:
    folder = ensure_cache(recipe, prepared, [recipe], evaluates=True)
    assert folder is not None
    lm = loaded_base(recipe, prepared.base)
    adapter = build_adapter(recipe.adapter, hidden_size=32, num_layers=4, seed=0)
    encoder = PromptEncoder(lm.tokenizer, recipe.prompt, context=lm.context)
    sets = evaluation_sets(prepared.splits, part="validation")
    full, cached = (Scorer(lm, encoder, 8, 4, None, cache) for cache in (None, PrefixCache.open(folder)))
    base_rows = full.score(sets)
    for threshold in (None, 0.4, 0.5):
        expected, found = (AdapterScorer(scorer, adapter, sets, base_rows).rows(threshold) for scorer in (full, cached))
        assert expected.keys() == found.keys()
        for name, rows in expected.items():
            for one, other in zip(rows, found[name], strict=True):
                assert (one.opened, one.generated, one.rouge_l_recall) == (other.opened, other.generated, other.rouge_l_recall)
                assert other.gate_values == pytest.approx(one.gate_values, abs=1e-5)
                assert other.answer_nll_nats == pytest.approx(one.answer_nll_nats, abs=1e-3)
                assert other.wrong_nll_means == pytest.approx(one.wrong_nll_means, abs=1e-4)
                assert other.exact_memorization == one.exact_memorization
                assert other.extraction_strength == one.extraction_strength
                assert other.min_k_nats == pytest.approx(one.min_k_nats, abs=1e-4)
                assert other.min_k_plus_plus == pytest.approx(one.min_k_plus_plus, abs=1e-3)


def test_one_cache_serves_every_placement_of_a_space(recipe: Recipe, prepared: Prepared) -> None:
    variants = SPACES["layer_positions"].variants(recipe.replace({"adapter": {"layers": None}}))
    folder = ensure_cache(recipe, prepared, variants)
    assert folder is not None
    cache, lm = PrefixCache.open(folder), loaded_base(recipe, prepared.base)
    rows = plan_cache(recipe, prepared, variants).examples[:5]
    assert cache.spec.state_layers == (1, 2)  # depths 12, 16 and 20 of 32 on four blocks
    for variant in variants:
        adapter = build_adapter(variant.adapter, hidden_size=32, num_layers=4, seed=0)
        cached = CachedPass(lm.above(adapter.layers[0]), cache).answers(rows, adapter)
        torch.testing.assert_close(cached.nll, FullPass(lm).answers(rows, adapter).nll, rtol=1e-4, atol=1e-4)


def test_an_objective_decides_what_is_kept_of_the_reference(recipe: Recipe, prepared: Prepared) -> None:
    def layers(objective: dict[str, Any]) -> tuple[int, ...]:
        variant = recipe.replace({"objective": objective})
        return plan_cache(variant, prepared, [variant]).spec.state_layers

    assert layers({"retain": {"kind": "ce"}}) == (1,)
    assert layers({"retain": {"kind": "kl"}}) == (1, 3)
    assert layers({"forget": {"kind": "rmu", "read_layer": 3}, "retain": {"kind": "hidden", "read_layer": 3}}) == (1, 3)


def test_refusals_and_answers_are_other_rows(recipe: Recipe, prepared: Prepared) -> None:
    refusing = recipe.replace({"objective": {"forget": {"kind": "idk"}}})
    apart = [plan_cache(r, prepared, [r]).spec.digest for r in (recipe, refusing)]
    assert apart[0] != apart[1]
    both = plan_cache(recipe, prepared, [recipe, refusing])
    assert both.spec.num_sequences > plan_cache(refusing, prepared, [refusing]).spec.num_sequences


def test_a_cache_that_would_be_too_large_is_refused_before_it_is_built(
    recipe: Recipe, prepared: Prepared, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = recipe.replace({"cache": {"max_gb": 1e-6}})
    with pytest.raises(CacheError, match=r"a prefix cache must fit `cache.max_gb`, 1e-06 GB, got 0.0\d+ GB for \d+ sequences"):
        ensure_cache(small, prepared, [small])
    assert ensure_cache(small.replace({"cache": {"mode": "auto"}}), prepared, [small]) is None
    assert "no prefix cache, every step runs the whole base: a prefix cache must fit" in capsys.readouterr().err
    assert not ran


@pytest.mark.parametrize("mode", ["auto", "require"])
def test_a_base_whose_forward_does_not_take_a_cache(
    recipe: Recipe, prepared: Prepared, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = LlamaForCausalLM.forward

    def without_cache(self: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            raise TypeError("unexpected past_key_values")
        return forward(self, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", without_cache)
    recipe = recipe.replace({"cache": {"mode": mode}})
    if mode == "require":
        with pytest.raises(CacheError, match="a base must take keys and values from a cache, got LlamaForCausalLM"):
            ensure_cache(recipe, prepared, [recipe])
    else:
        assert ensure_cache(recipe, prepared, [recipe]) is None
        assert capsys.readouterr().err.count("no prefix cache") == 1


def test_a_probe_that_disagrees_is_remembered_and_not_built_again(
    recipe: Recipe, prepared: Prepared, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a model whose attention does not ask the library for its implementation would run like this: without any prefix
    monkeypatch.setitem(AttentionInterface._global_mapping, suffix._NAME, ALL_ATTENTION_FUNCTIONS["sdpa"])
    with pytest.raises(CacheError, match="cached and full passes must give the same gradients, got a relative difference of"):
        ensure_cache(recipe, prepared, [recipe])
    count = len(ran)
    assert ensure_cache(recipe.replace({"cache": {"mode": "auto"}}), prepared, [recipe]) is None
    assert len(ran) == count


def test_a_damaged_cache_stops_the_run_in_any_mode(recipe: Recipe, prepared: Prepared) -> None:
    folder = ensure_cache(recipe, prepared, [recipe])
    assert folder is not None
    path = shard_path(folder, 0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match="got the damaged file"):
        ensure_cache(recipe.replace({"cache": {"mode": "auto"}}), prepared, [recipe])


def test_off_is_off(recipe: Recipe, prepared: Prepared, ran: list[str]) -> None:
    assert ensure_cache(recipe.replace({"cache": {"mode": "off"}}), prepared, [recipe]) is None
    assert not ran


def test_caches_are_listed_and_pruned(recipe: Recipe, prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    shallow, deep = recipe, recipe.replace({"adapter": {"layers": [2]}})
    old, new = (ensure_cache(r, prepared, [r]) for r in (shallow, deep))
    assert old is not None
    assert new is not None
    long_ago = time.time() - 40 * 24 * 3600
    os.utime(old / CACHE_FILE, (long_ago, long_ago))
    options = ["--output", str(recipe.output)]
    assert cache_verb.main(options) == 0
    listed = capsys.readouterr().out
    assert "found 2 prefix cache(s)" in listed
    assert "in order, last used 40.0 days ago; " in listed
    assert "blocks 2..3 of 4, float32" in listed
    with building(old):
        assert cache_verb.main(["--prune", *options]) == 0
    assert f"{old.name} is being built and stays" in capsys.readouterr().err
    assert old.is_dir()
    assert cache_verb.main(["--prune", *options]) == 0
    assert not old.exists()
    assert new.is_dir()
    assert cache_verb.main(["--prune", "--unused-days", "0", *options]) == 0
    assert not new.exists()


def test_a_cache_that_is_read_is_neither_pruned_nor_missed(
    recipe: Recipe, prepared: Prepared, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = ["--prune", "--unused-days", "0", "--output", str(recipe.output)]

    def pruned_at_once(*args: Any, **options: Any) -> Path | None:
        folder = ensure_cache(*args, **options)
        if not pruned:
            pruned.append(cache_verb.main(prune))
        return folder

    pruned: list[int] = []
    monkeypatch.setattr(caching, "ensure_cache", pruned_at_once)
    with caching.reading_cache(recipe, prepared, [recipe]) as folder, caching.reading_cache(recipe, prepared, [recipe]) as again:
        assert folder is not None
        assert pruned == [0], "it was pruned before anybody had said that he reads it, and built once more"
        assert again == folder
        assert cache_verb.main(prune) == 0
        assert f"{folder.name} is being read and stays" in capsys.readouterr().err
        PrefixCache.open(folder)
    assert cache_verb.main(prune) == 0
    assert not folder.exists()


def test_a_relative_model_folder_is_the_same_to_workers_that_run_elsewhere(
    recipe: Recipe, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base_folder.parent)
    relative = recipe.replace({"model": {"path": base_folder.name, "retain_path": base_folder.name}})
    prepared = plan(relative)
    assert (prepared.base, prepared.retain_only) == (str(base_folder), str(base_folder))
    assert plan(recipe.replace({"model": {"path": "someone/some-model"}})).base == "someone/some-model"


def test_what_requests_have_in_common_is_computed_once_and_linked(recipe: Recipe, prepared: Prepared, ran: list[str]) -> None:
    """A second request adds its own rows alone, and trains as if it had a cache to itself."""
    records = prepared.splits.forget
    common = replace(prepared, splits=replace(prepared.splits, forget=(), retain=(*records, *prepared.splits.retain)))
    idk = recipe.replace({"objective": {"forget": {"kind": "idk"}}})
    requests = [
        replace(
            prepared,
            splits=replace(prepared.splits, forget=own, retain=(*(r for r in records if r not in own), *prepared.splits.retain)),
        )
        for own in (records[:3], records[3:5])
    ]
    first = ensure_cache(idk, requests[0], [idk], common=common)
    built = ran.count("build_shard")
    second = ensure_cache(idk, requests[1], [idk], common=common)
    assert first is not None
    assert second is not None
    assert ran.count("build_shard") == built + 1, "one file, of its own rows"
    shared = plan_cache(idk, common, [idk]).folder
    linked = [path.name for path in sorted(second.glob("*.safetensors")) if (shared / path.name).is_file()]
    assert len(linked) > 1
    assert all((second / name).samefile(shared / name) for name in linked)
    assert plan_cache(idk, requests[1], [idk], common=common).num_bytes < plan_cache(idk, common, [idk]).num_bytes / 4
    assert ensure_cache(idk, requests[1], [idk], common=common) == second

    alone = ensure_cache(idk, requests[1], [idk])
    assert alone is not None
    adapters = []
    for folder in (second, alone):
        task = build_task(idk, requests[1].splits, requests[1].request, load_frozen_lm(prepared.base))
        engine = TorchEngine(CachedPass(load_frozen_lm(prepared.base, cut=1), PrefixCache.open(folder)))
        fit(engine, task.adapter, task.objective, task.sampler, task.optimizer)
        adapters.append(task.adapter.state_dict())
    for name, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], value, rtol=0, atol=1e-6)


def test_a_damaged_common_file_stops_whoever_takes_it_over(recipe: Recipe, prepared: Prepared) -> None:
    common = replace(prepared, splits=replace(prepared.splits, forget=()))
    folder = ensure_cache(recipe, common, [recipe])
    assert folder is not None
    path = shard_path(folder, 0)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CacheError, match="damaged"):
        ensure_cache(recipe.replace({"cache": {"mode": "auto"}}), prepared, [recipe], common=common)
