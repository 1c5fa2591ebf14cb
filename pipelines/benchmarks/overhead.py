"""What running on a cluster costs: a step under Ray Train and DeepSpeed against a bare loop, and how soon a trial takes its first step.

Steps are timed by the run's own spool (a line a step) on a base that is large enough to be worth sharding; starts on
one of the embedded testbed's size, where nothing else could hide them. One worker on either side, so that both do the same
arithmetic. What the cluster does is not this process's CPU time: everything here is wall time.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from grun.config import Recipe
from grun.data.records import QARecord, Record, to_json
from grun.lm import CachedPass, FrozenLM, PrefixCache, load_frozen_lm
from grun.training import MetricsSpool, TorchEngine, build_task, fit
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, plain
from pipelines.benchmarks.workload import Geometry, make_tokenizer, new_lm, read_rows
from pipelines.caching import ensure_cache
from pipelines.cluster import connected
from pipelines.console import note
from pipelines.prepared import Prepared, plan, write_prepared
from pipelines.slots import open_slots, train_on_slot
from pipelines.trainer import train_on_ray

__all__ = ["prepare_case", "run"]

_ROWS = {"forget": 48, "retain": 96, "holdout": 16}
_LATER_TRIALS = 4


def run(options: Options) -> Report:
    """Measure step and start.

    Raises:
        DataError: TOFU is not where it should be.
    """
    toy = Geometry.toy()
    large = toy if options.tiny else Geometry()
    small = toy if options.tiny else Geometry(num_layers=8, hidden_size=128, num_heads=4, vocab_size=2048, context=512)
    large_case, small_case = (prepare_case(options, name, shape) for name, shape in (("large", large), ("small", small)))
    # the idle slot keeps its CPUs while nested trials start theirs
    with connected(large_case[0]):
        rows = [*_step_rows(options, *large_case), *_start_rows(options, *small_case)]
    workload = {"rows": _ROWS, "step": vars(large), "start": vars(small), "workers": 1}
    return Report(rows, ratio_figure("Overhead of Ray Train with DeepSpeed", rows), workload)


def prepare_case(options: Options, name: str, geometry: Geometry, **train: Any) -> tuple[Recipe, Prepared]:
    """A random base in a folder, a few rows of TOFU in files, and the recipe that trains on them.

    Args:
        train: fields of `train`, over eight epochs on one worker without reports.
    """
    folder = options.work / f"overhead-{name}"
    splits = read_rows(options)
    lm = new_lm(geometry, make_tokenizer(splits, geometry))
    lm.model.save_pretrained(folder / "base")
    lm.tokenizer.save_pretrained(folder / "base")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for part, count in _ROWS.items():
        _write(folder / "data" / f"{part}.jsonl", getattr(splits, part)[:count])
    recipe = Recipe.parse(
        {
            "name": name,
            "output": str(folder / f"outputs-{time.time_ns()}"),
            "data": {"kind": "jsonl", "path": str(folder / "data"), "holdout": "holdout.jsonl"},
            "model": {"path": str(folder / "base")},
            "objective": {"forget": {"kind": "gd"}},
            "train": {
                "epochs": 4 if options.tiny else 8,
                "num_workers": 1,
                "report_every": 1000,
                "probe_rows": 16,
                **train,
            },
            "cache": {"mode": "require"},
            "cluster": {"num_cpus": 4},
        }
    )
    prepared = plan(recipe)
    write_prepared(prepared)
    return recipe, prepared


def _write(path: Path, records: Sequence[Record]) -> None:
    plain_rows = [replace(r, wrong_answers=()) if isinstance(r, QARecord) else r for r in records]
    path.write_text("".join(json.dumps(to_json(record)) + "\n" for record in plain_rows), encoding="utf-8")


def _step_rows(options: Options, recipe: Recipe, prepared: Prepared) -> list[Row]:
    """A step of Ray Train with DeepSpeed and one of a bare loop, run in turn; steps before the third warm up."""
    cache = ensure_cache(recipe, prepared, [recipe])
    assert cache is not None
    steps: dict[str, list[float]] = {"ray": [], "bare": []}
    ratios = []
    for repeat in range(options.repeats):
        folder = recipe.output / f"steps-{repeat}"
        train_on_ray(recipe, prepared, folder / "ray", name=f"steps-{repeat}", cache=cache)
        _bare_loop(recipe, prepared, cache, folder / "bare")
        for way, seconds in steps.items():
            seconds.append(statistics.median(_step_seconds(folder / way / "metrics.jsonl")[2:]))
        ratios.append(steps["ray"][-1] / steps["bare"][-1])
        note(f"repeat {repeat + 1} of {options.repeats}: a step takes {steps['ray'][-1]:.3f} s, bare {steps['bare'][-1]:.3f} s")
    ray, bare = (statistics.median(seconds) for seconds in steps.values())
    name = "overhead.step_over_bare"
    return [Row(name, ray, "s", baseline=bare, ratio=statistics.median(ratios), low=min(ratios), high=max(ratios))]


def _bare_loop(recipe: Recipe, prepared: Prepared, cache: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    opened = PrefixCache.open(cache, verify=False)
    lm: FrozenLM = load_frozen_lm(prepared.base, cut=opened.spec.cut)
    engine = TorchEngine(CachedPass(lm, opened))
    task = build_task(recipe, prepared.splits, prepared.request, lm)
    spool = MetricsSpool(folder / "metrics.jsonl")
    fit(engine, task.adapter, task.objective, task.sampler, task.optimizer, callbacks=[spool])


def _times(spool: Path) -> list[float]:
    """When each step ended, in seconds since the epoch."""
    return [json.loads(line)["time_ms"] / 1000 for line in spool.read_text(encoding="utf-8").splitlines()]


def _step_seconds(spool: Path) -> list[float]:
    return [end - start for start, end in pairwise(_times(spool))]


def _start_rows(options: Options, recipe: Recipe, prepared: Prepared) -> list[Row]:
    """From submission to the end of the first step: on a cold slot, on a warm one, with workers of its own."""
    cache = ensure_cache(recipe, prepared, [recipe])
    nested: list[float] = []
    submitted = time.time()
    with open_slots(recipe, prepared, cache, recipe.output, 1) as hub:
        first = _first_step_on_slot(hub, recipe, "first", submitted)
        later = [_first_step_on_slot(hub, recipe, f"later-{n}", time.time()) for n in range(_LATER_TRIALS)]
        for repeat in range(options.repeats):
            folder, submitted = recipe.output / f"nested-{repeat}", time.time()
            train_on_ray(recipe, prepared, folder, name=f"nested-{repeat}", cache=cache)
            nested.append(_times(folder / "metrics.jsonl")[0] - submitted)
            later.append(_first_step_on_slot(hub, recipe, f"between-{repeat}", time.time()))
    warm, cold = statistics.median(later), statistics.median(nested)
    return [
        plain("overhead.first_trial_first_step_s", first, "s"),
        Row(
            "overhead.later_trial_first_step_s",
            warm,
            "s",
            baseline=cold,
            ratio=warm / cold,
            low=min(later) / cold,
            high=max(later) / cold,
        ),
        Row("overhead.nested_trial_first_step_s", cold, "s", low=min(nested), high=max(nested)),
    ]


def _first_step_on_slot(hub: str, recipe: Recipe, name: str, submitted: float) -> float:
    folder = recipe.output / name
    folder.mkdir(parents=True)
    for _report in train_on_slot(hub, name, recipe, folder):
        pass
    return _times(folder / "metrics.jsonl")[0] - submitted
