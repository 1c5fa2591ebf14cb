"""`nodes`: the same sweep on 1, 2 and 4 nodes.

Simulated is the size of a node: each is a Ray node of its own on this machine, held to a fixed share of its cores by a
control group, so that four of them fit and each is as slow as it would be alone. The head, which offers no CPU, is not
held. Ray, the trials, their scoring and the cache they read are real; the network between nodes is this machine's own.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ray.cluster_utils import Cluster

from grun.config import Recipe
from pipelines.benchmarks.cgroup import check_quotas, cpu_quota
from pipelines.benchmarks.figures import speedup_figure
from pipelines.benchmarks.harness import Options, Report, Row, Seconds, compare
from pipelines.caching import ensure_cache
from pipelines.cluster import connected
from pipelines.console import note
from pipelines.prepare import prepare
from pipelines.prepared import Prepared, plan
from pipelines.sweep import sweep, sweep_folder
from pipelines.sweep_record import read_trials
from pipelines.tracking import Tracker
from tune_spaces import find_space

__all__ = ["run"]

_COUNTS = (1, 2, 4)

_CORES = 0.4
"""Of a node: beside four of them the head keeps a fifth of two cores."""

_OBJECT_STORE = 80_000_000


@dataclass(frozen=True)
class _Taken:
    """What a sweep took."""

    whole: Seconds
    """From the call to the registered adapter."""
    trials: Seconds
    """From the first trial that started to the last that was scored."""


def run(options: Options) -> Report:
    """Measure sweeps.

    Raises:
        ClusterError: this machine does not let a process's share of the cores be limited.
    """
    check_quotas()
    recipe = _recipe(options)
    prepared = plan(recipe)
    with connected(recipe):  # on all cores: the base, its scores and the cache are there before anything is timed
        prepare(recipe, prepared)
        ensure_cache(recipe, prepared, find_space(recipe.sweep.space).variants(recipe), evaluates=True)
    taken: dict[int, list[_Taken]] = {count: [] for count in _COUNTS}
    for repeat in range(options.repeats):
        for count in _COUNTS if repeat % 2 == 0 else reversed(_COUNTS):
            taken[count].append(_sweep_on(recipe, prepared, count))
            note(f"repeat {repeat + 1} of {options.repeats}: {count} node(s) {taken[count][-1].whole.wall:.0f} s")
    whole = {count: [one.whole for one in taken[count]] for count in _COUNTS}
    trials = {count: [one.trials for one in taken[count]] for count in _COUNTS}
    rows: list[Row] = [
        compare(f"nodes.{part}.{count}_over_1", samples[count], samples[1], wall_only=True)
        for part, samples in (("sweep", whole), ("trials", trials))
        for count in _COUNTS[1:]
    ]
    workload = {
        "trials": recipe.sweep.num_trials,
        "workers": recipe.train.num_workers,
        "epochs": recipe.train.epochs,
        "simulated": f"each node is a Ray node on this machine, held to {_CORES} cores by a control group; the head is not held",
        "base": "the embedded testbed's, of fewer people; taught, scored and cached beforehand",
    }
    speedups = {
        part: {n: _median_ratio(s[1], s[n]) for n in _COUNTS} for part, s in (("whole sweep", whole), ("its trials", trials))
    }
    return Report(rows, speedup_figure("The same sweep on more nodes", speedups, xlabel="nodes"), workload)


def _median_ratio(one: list[Seconds], many: list[Seconds]) -> float:
    row = compare("", one, many, wall_only=True)
    assert row.ratio is not None
    return row.ratio


def _recipe(options: Options) -> Recipe:
    values = {
        "output": str(options.work / "nodes"),
        # what is forgotten how well is not measured: a small base does, of few people
        "data": {"num_people": 24, "num_forget": 4},
        "model": {"retain_twin": False, "taught": {"epochs": 22}},
        "cache": {"mode": "require"},
        "train": {"num_workers": 1, "epochs": 12},
        # the same trials however many run at a time, each of them whole
        "sweep": {"searcher": "random", "scheduler": "none", "num_trials": 8},
    }
    recipe = Recipe.parse(values)
    small = {"data": {"num_people": 12, "num_forget": 2}, "model": {"taught": {"epochs": 12}}, "train": {"epochs": 2}}
    return recipe.replace({**small, "sweep": {"num_trials": 2}}) if options.tiny else recipe


def _sweep_on(recipe: Recipe, prepared: Prepared, count: int) -> _Taken:
    recipe = recipe.replace({"name": f"nodes-{count}-{time.time_ns()}"})
    with _cluster_of(count), connected(recipe):
        start = time.perf_counter()
        sweep(recipe, find_space(recipe.sweep.space), prepared, Tracker.open(recipe.tracking, recipe.output))
        whole = time.perf_counter() - start
    folder = sweep_folder(recipe)
    ended = max(file.stat().st_mtime for file in folder.glob("trials/*/trial.json"))
    started = min(trial.started for trial in read_trials(folder))
    return _Taken(Seconds(0.0, whole), Seconds(0.0, ended - started))


@contextmanager
def _cluster_of(count: int) -> Iterator[None]:
    """A Ray cluster of a head without CPUs and so many nodes with one; `RAY_ADDRESS` names it."""
    before = os.environ.get("RAY_ADDRESS")
    with ExitStack() as held:
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": _OBJECT_STORE, "include_dashboard": False},
        )
        quotas = [held.enter_context(cpu_quota(f"grun-node-{os.getpid()}-{index}", _CORES)) for index in range(count)]
        held.callback(cluster.shutdown)  # before the groups go: they have to be empty
        for quota in quotas:
            node = cluster.add_node(num_cpus=1, object_store_memory=_OBJECT_STORE)
            for processes in node.all_processes.values():
                for info in processes:
                    quota.hold(info.process.pid)
        os.environ["RAY_ADDRESS"] = cluster.address
        try:
            yield
        finally:
            if before is None:
                del os.environ["RAY_ADDRESS"]
            else:
                os.environ["RAY_ADDRESS"] = before
