"""Warm slots on a real local Ray: trials one after another, pristine each time, whatever happens to the workers."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import torch
from safetensors.torch import load_file

from grun.config import Recipe
from grun.errors import CacheError, TrainingError
from grun.lm.prefix_cache import shard_path
from pipelines.caching import ensure_cache
from pipelines.cluster import connected
from pipelines.prepare import prepare
from pipelines.prepared import Prepared, plan
from pipelines.slots import open_slots, train_on_slot
from pipelines.trainer import read_outcome, train_on_ray

pytestmark = [
    pytest.mark.slow,  # workers start, and import DeepSpeed
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def recipe(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return make_recipe(output=str(tmp_path_factory.mktemp("slots")), cache={"mode": "require"})


@pytest.fixture(scope="module")
def prepared(recipe: Recipe) -> Iterator[Prepared]:
    """The request, on a cluster of two CPUs that is open for all tests."""
    handler = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ):
        os.environ.pop("RAY_ADDRESS", None)
        with connected(recipe):
            found = plan(recipe)
            prepare(recipe, found)
            yield found
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def variants(recipe: Recipe) -> list[Recipe]:
    """Trials that differ in placement, rank and objective."""
    return [
        recipe.replace({"adapter": {"layers": [1, 3]}}),
        recipe.replace({"adapter": {"layers": [2], "rank": 3, "gate": {"kind": "mlp_3"}}}),
        recipe.replace({"objective": {"forget": {"kind": "npo", "weight": 1}, "retain": {"kind": "kl"}}, "seed": 3}),
    ]


@pytest.fixture(scope="module")
def cache(recipe: Recipe, prepared: Prepared, variants: list[Recipe]) -> Path:
    folder = ensure_cache(recipe, prepared, variants)
    assert folder is not None
    return folder


def trial_folder(recipe: Recipe, name: str) -> Path:
    folder = recipe.output / "trials" / name
    folder.mkdir(parents=True)
    return folder


def adapters_agree(one: Path, other: Path) -> None:
    mine, theirs = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6)


def test_slots_and_nested_runs_give_the_same_adapters(
    recipe: Recipe, prepared: Prepared, cache: Path, variants: list[Recipe]
) -> None:
    with open_slots(recipe, prepared, cache, recipe.output / "sweep", 1) as hub:
        for index, variant in enumerate([*variants, variants[0]]):
            folder = trial_folder(recipe, f"slot-{index}")
            steps = [report["step"] for report in train_on_slot(hub, f"trial-{index}", variant, folder)]
            assert steps == [2, 4, 6]
            assert read_outcome(folder).steps == 6
    for index, variant in enumerate(variants):
        folder = trial_folder(recipe, f"nested-{index}")
        train_on_ray(variant, prepared, folder, name=f"nested-{index}", cache=cache)
        adapters_agree(folder, folder.with_name(f"slot-{index}"))
    # the last trial repeats the first: nothing of the two between them is left
    first, again = (load_file(recipe.output / "trials" / f"slot-{i}" / "adapter" / "adapter.safetensors") for i in (0, 3))
    assert all(torch.equal(first[name], again[name]) for name in first)


def workers() -> list[psutil.Process]:
    """The workers of Ray Train below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("RayTrainWorker" in part for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_killed_worker_costs_nothing_but_time(recipe: Recipe, prepared: Prepared, cache: Path, variants: list[Recipe]) -> None:
    long = variants[0].replace({"train": {"epochs": 40}})
    straight, killed = (trial_folder(recipe, name) for name in ("straight", "killed"))
    with open_slots(recipe, prepared, cache, recipe.output / "sweep", 1) as hub:
        assert len(list(train_on_slot(hub, "straight", long, straight))) == 40
        steps = []
        for report in train_on_slot(hub, "killed", long, killed):
            steps.append(report["step"])
            if len(steps) == 1:
                victim, *_ = workers()
                os.kill(victim.pid, signal.SIGKILL)
        assert steps[-1] == 80
        assert len(set(steps)) <= 40
        adapters_agree(straight, killed)
        # and the slot takes the next one
        assert len(list(train_on_slot(hub, "after", variants[1], trial_folder(recipe, "after")))) == 3


def test_a_slot_that_cannot_open_its_cache_says_why(
    recipe: Recipe, prepared: Prepared, cache: Path, variants: list[Recipe], tmp_path: Path
) -> None:
    import shutil

    damaged = Path(shutil.copytree(cache, tmp_path / cache.name))
    shard_path(damaged, 0).write_bytes(b"nothing")
    with (
        open_slots(recipe, prepared, damaged, recipe.output / "sweep", 1) as hub,
        pytest.raises(TrainingError, match="a prefix cache must be as it was written, got the damaged file"),
    ):
        list(train_on_slot(hub, "hopeless", variants[0], trial_folder(recipe, "hopeless")))


def test_a_mistake_of_a_trial_ends_that_trial_alone(
    recipe: Recipe, prepared: Prepared, cache: Path, variants: list[Recipe]
) -> None:
    unknown: dict[str, Any] = {"objective": {"forget": {"kind": "idk"}}}  # refusals that the cache was not built with
    with open_slots(recipe, prepared, cache, recipe.output / "sweep", 1) as hub:
        folder = trial_folder(recipe, "mistaken")
        list(train_on_slot(hub, "mistaken", recipe.replace(unknown), folder))
        with pytest.raises(CacheError, match="a prefix cache serves only the rows it was built from"):
            read_outcome(folder)
        assert len(list(train_on_slot(hub, "right", variants[0], trial_folder(recipe, "right")))) == 3
