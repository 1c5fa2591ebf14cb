"""A node that is taken away under a trial, and given back: real raylets on this machine beside a head without CPUs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from grun.config import Recipe
from grun.training.checkpoint import Found
from pipelines.caching import ensure_cache
from pipelines.cluster import connected
from pipelines.prepare import prepare
from pipelines.prepared import plan
from pipelines.slots import open_slots, train_on_slot
from pipelines.trainer import read_outcome
from tests.clusters import STORE, running_cluster
from tests.faults.injection import Injection
from tests.faults.table import row

pytestmark = [
    pytest.mark.slow,  # workers start, and import DeepSpeed
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs."""
    with running_cluster(num_cpus=0) as cluster:
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster


@row(
    "drivers",
    "a trial is preempted: its node is taken away, and comes back",
    where="a slot of `sweep`, in the middle of training",
    sees="nothing: the trial goes on from its last checkpoint",
    broken=Injection(
        "grun.training.checkpoint:Checkpoints.find", "replace", always=True, by="tests.faults.test_preemption:afresh"
    ),
)
def test_a_preempted_trial_goes_on_to_the_same_adapter(
    cluster: Cluster, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(
        output=str(tmp_path), train={"num_workers": 1, "engine": "torch", "epochs": 60}, cache={"mode": "require"}
    )
    straight, preempted = (tmp_path / name for name in ("straight", "preempted"))
    for folder in (straight, preempted):
        folder.mkdir()
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    with connected(recipe):
        prepared = plan(recipe)
        prepare(recipe, prepared)
        cache = ensure_cache(recipe, prepared, [recipe])
        with open_slots(recipe, prepared, cache, tmp_path / "sweep", 1) as hub:
            expected = [report["step"] for report in train_on_slot(hub, "straight", recipe, straight)]
            reports = train_on_slot(hub, "preempted", recipe, preempted)
            steps = [next(reports)["step"]]
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
            steps += [report["step"] for report in reports]
    assert steps == expected
    one, other = (read_outcome(folder) for folder in (straight, preempted))
    assert one.nodes != other.nodes
    assert other.wall_seconds is None, "it went on, and did not begin again"
    assert (one.adapter / "adapter.safetensors").read_bytes() == (other.adapter / "adapter.safetensors").read_bytes()


def afresh(*_arguments: object, **_named: object) -> Found:
    """What takes the place of `find`: nothing is known."""
    return Found(None)
