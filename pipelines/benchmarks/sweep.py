"""What a trial of a sweep costs, on the embedded testbed: one more on a warm slot with the shared cache, and the same run alone.

A trial is trained and scored at every gate threshold. Alone, it starts workers of its own, runs the whole base in every
step, and scores without a cache; the base is taught and scored beforehand on either side. What the cluster does is not this
process's CPU time: everything here is wall time.
"""

import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from grun.config import Recipe
from pipelines.adapter_scoring import score_adapter
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, Seconds, compare, plain
from pipelines.caching import ensure_cache, plan_cache
from pipelines.cluster import connected
from pipelines.console import note
from pipelines.prepare import prepare
from pipelines.prepared import Prepared, plan
from pipelines.slots import open_slots, train_on_slot
from pipelines.sweep import sweep
from pipelines.sweep_trial import validating
from pipelines.tasks import HelperTask, run_tasks
from pipelines.tracking import Tracker
from pipelines.trainer import read_outcome, train_on_ray
from tune_spaces import find_space

__all__ = ["run"]

_SIXTEEN = 16


def run(options: Options) -> Report:
    """Measure trials alone and in a sweep."""
    recipe = _recipe(options)
    prepared = plan(recipe)
    space = find_space(recipe.sweep.space)
    # an idle slot keeps its two CPUs while trials alone start their own workers
    with connected(recipe):
        prepare(recipe, prepared)
        variants = space.variants(recipe)
        cache, build = _timed_cache(recipe, prepared, variants)
        caches = _one_cache_against_one_per_cut(recipe, prepared, variants, build)
        more, alone = _trials(options, recipe, prepared, cache, list(space.thresholds))
        start = time.perf_counter()
        count = 2 if options.tiny else _SIXTEEN
        sixteen = recipe.replace({"name": f"sixteen-{time.time_ns()}", "sweep": {"num_trials": count}})
        sweep(sixteen, space, prepared, Tracker.open(sixteen.tracking, sixteen.output))
        whole = time.perf_counter() - start + build
    separate = count * statistics.median(sample.wall for sample in alone)
    rows: list[Row] = [
        compare("sweep.one_more_trial_over_alone", more, alone, wall_only=True),
        plain("sweep.sixteen_over_separate", whole, "s", baseline=separate),
        *caches,
    ]
    workload = {
        "trials": count,
        "epochs": recipe.train.epochs,
        "separate": f"{count} times the median of {len(alone)} runs alone",
        "base": "the embedded testbed's, taught and scored beforehand",
    }
    return Report(rows, ratio_figure("One more trial, and sixteen", rows), workload)


def _timed_cache(recipe: Recipe, prepared: Prepared, variants: Sequence[Recipe]) -> tuple[Path, float]:
    """A cache and the seconds it took to build; what is there from an earlier run is built anew."""
    shutil.rmtree(plan_cache(recipe, prepared, variants, evaluates=True).folder, ignore_errors=True)
    start = time.perf_counter()
    cache = ensure_cache(recipe, prepared, variants, evaluates=True)
    assert cache is not None
    return cache, time.perf_counter() - start


def _one_cache_against_one_per_cut(recipe: Recipe, prepared: Prepared, variants: Sequence[Recipe], build: float) -> list[Row]:
    """Bytes and seconds of the cache that all placements share, against a cache for each block that one of them starts at."""
    num_layers = plan_cache(recipe, prepared, variants).spec.num_layers
    by_cut: dict[int, list[Recipe]] = {}
    for variant in variants:
        by_cut.setdefault(min(variant.adapter.resolve_layers(num_layers)), []).append(variant)
    shared = plan_cache(recipe, prepared, variants, evaluates=True).num_bytes
    apart = sum(plan_cache(recipe, prepared, few, evaluates=True).num_bytes for few in by_cut.values())
    seconds = sum(_timed_cache(recipe, prepared, few)[1] for few in by_cut.values())
    return [
        plain("sweep.cache_bytes.one_over_one_per_cut", shared / 1e6, "MB", baseline=apart / 1e6),
        plain("sweep.cache_build.one_over_one_per_cut", build, "s", baseline=seconds),
    ]


def _recipe(options: Options) -> Recipe:
    values = {
        "output": str(options.work / "sweep"),
        "cache": {"mode": "require"},
        # sixteen full trials, as sixteen separate runs would be
        "sweep": {"scheduler": "none"},
        "cluster": {"num_cpus": 4},
    }
    recipe = Recipe.parse(values)
    small = {"data": {"num_people": 12, "num_forget": 2}, "model": {"taught": {"epochs": 12}}, "train": {"epochs": 2}}
    return recipe.replace(small) if options.tiny else recipe


def _trials(
    options: Options, recipe: Recipe, prepared: Prepared, cache: Path, thresholds: list[float]
) -> tuple[list[Seconds], list[Seconds]]:
    """One more trial on a slot that has had its first, and the same alone, in turn."""
    more, alone = [], []
    root = recipe.output / f"trials-{time.time_ns()}"
    with open_slots(recipe, prepared, cache, root, 1) as hub:
        for repeat in range(options.repeats + 1):
            folder = root / f"more-{repeat}"
            folder.mkdir(parents=True)
            start = time.perf_counter()
            for _report in train_on_slot(hub, folder.name, recipe, folder):
                pass
            _score(recipe, prepared, folder, thresholds, cache)
            took = time.perf_counter() - start
            if repeat == 0:  # which started the slot's workers
                continue
            more.append(Seconds(0.0, took))
            folder = root / f"alone-{repeat}"
            start = time.perf_counter()
            train_on_ray(recipe, prepared, folder, name=folder.name, cache=None)
            _score(recipe, prepared, folder, thresholds, None)
            alone.append(Seconds(0.0, time.perf_counter() - start))
            note(f"repeat {repeat} of {options.repeats}: one more {more[-1].wall:.1f} s, alone {alone[-1].wall:.1f} s")
    return more, alone


def _score(recipe: Recipe, prepared: Prepared, folder: Path, thresholds: list[float], cache: Path | None) -> None:
    arguments = {
        "recipe": validating(recipe),
        "prepared": prepared.folder,
        "base": prepared.base,
        "retain_only": prepared.retain_only,
        "adapter_folder": read_outcome(folder).adapter,
        "folder": folder / "evaluation",
        "thresholds": thresholds,
        "cache": cache,
    }
    run_tasks(recipe, [HelperTask("scoring", score_adapter, arguments)], shared=recipe.output)
