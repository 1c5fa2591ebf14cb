"""A sweep on several nodes, which are real raylets on this machine beside a head without CPUs: who does what, and a node that joins."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from grun.config import Recipe
from pipelines import sweep_trial
from pipelines.caching import ensure_cache
from pipelines.cluster import connected
from pipelines.entry import STOP_FILE
from pipelines.prepare import prepare
from pipelines.prepared import plan
from pipelines.slots import open_slots, train_on_slot
from pipelines.trainer import TrainOutcome, read_outcome
from tests.clusters import STORE, running_cluster

pytestmark = [
    pytest.mark.slow,  # workers start, and import DeepSpeed
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]

DEADLINE_SECONDS = 900.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and one node with one."""
    with running_cluster(num_cpus=0) as cluster:
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster


def num_cpus() -> int:
    return int(ray.cluster_resources()["CPU"])


def test_a_node_that_joins_takes_trials(cluster: Cluster, make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(output=str(tmp_path), train={"num_workers": 1}, cache={"mode": "require"})
    busy, other = (tmp_path / name for name in ("busy", "other"))
    busy.mkdir()
    other.mkdir()
    with connected(recipe):
        prepared = plan(recipe)
        prepare(recipe, prepared)
        cache = ensure_cache(recipe, prepared, [recipe])
        with open_slots(recipe, prepared, cache, tmp_path / "sweep", 1, wanted=num_cpus) as hub:
            reports = train_on_slot(hub, "busy", recipe.replace({"train": {"epochs": 1_000_000}}), busy)
            assert next(reports)["step"] == 2
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
            # the only slot there was is taken; if it stays the only one, the other trial gets it in the end, and the nodes are the same
            deadline = threading.Timer(DEADLINE_SECONDS, (busy / STOP_FILE).touch)
            deadline.start()
            try:
                assert [report["step"] for report in train_on_slot(hub, "other", recipe, other)] == [2, 4, 6]
            finally:
                deadline.cancel()
                (busy / STOP_FILE).touch()
            list(reports)
    first, second = read_outcome(busy), read_outcome(other)
    assert first.stopped_early
    assert len(first.nodes) == len(second.nodes) == 1
    assert first.nodes != second.nodes


class NodeReport:
    """Stands for a trial's report: its threshold is the node it was made on."""

    def __init__(self) -> None:
        self.gate_threshold = ray.get_runtime_context().get_node_id()

    def value(self, _key: str) -> float:
        return 0.0


def test_a_trial_is_scored_on_the_node_of_its_slot(
    cluster: Cluster, make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(output=str(tmp_path), train={"num_workers": 1})
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(sweep_trial, "score_adapter", lambda **_arguments: {"": NodeReport()})
    with connected(recipe):
        context = sweep_trial.TrialContext(recipe, plan(recipe), tmp_path, (0.5,), hub="a hub")
        workers = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU")}
        assert len(workers) == 2

        def scored_on(*nodes: str) -> object:
            outcome = TrainOutcome(tmp_path, 1, 1, stopped_early=False, resident_share=1.0, nodes=nodes)
            _best, _threshold, (node,) = sweep_trial._score(context, recipe, outcome, tmp_path)
            return node

        assert [scored_on(node, "other") for node in workers] == list(workers)
        # of a sweep that goes on elsewhere
        assert scored_on("0" * 56) in {node["NodeID"] for node in ray.nodes()}
