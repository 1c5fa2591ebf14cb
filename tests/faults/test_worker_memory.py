"""Memory that runs out, and tasks that are killed: the message says which worker, and what to lower."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from grun.config import Recipe
from grun.errors import ClusterError
from pipelines.caching import ensure_cache
from pipelines.prepared import plan
from tests.faults.arming import Arms, nothing_is_left
from tests.faults.injection import Injection, environment
from tests.faults.table import row
from tests.faults.test_workers import FORWARD
from tests.pipelines.runs import TrainIt, training_on_one_cluster

pytestmark = [
    pytest.mark.slow,  # workers start
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]

HERE = "tests.faults.test_worker_memory"
IN_A_SHARD = "grun.lm.cache_build:file_digest"


def too_much(original: Callable[..., Any], *args: Any, **options: Any) -> None:
    """A fault: a petabyte is asked for."""
    torch.empty(2**50, dtype=torch.uint8)


def no_shortage(original: Callable[..., Any], error: BaseException) -> bool:
    """Safeguard broken: an error like any other."""
    return False


def once(original: Callable[..., Any], recipe: Recipe, *args: Any) -> Any:
    """Safeguard broken: a task runs once."""
    return original(recipe.replace({"train": {"max_failures": 0}}), *args)


def as_ray_says(original: Callable[..., Any], recipe: Recipe, task: Any, reference: Any) -> Any:
    """Safeguard broken: a task's end is not put into words."""
    return ray.get(reference)


def without_a_word(original: Callable[..., Any], *args: Any) -> str:
    """Safeguard broken: what happened to a worker is not told."""
    return "a worker failed"


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Arms:
    return Arms(tmp_path_factory.mktemp("memory") / "arms")


@pytest.fixture(scope="module")
def train_it(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., Recipe], arms: Arms) -> Iterator[TrainIt]:
    faults = [
        arms.fault("shortage in a worker", FORWARD, "replace", nth=3, rank=1, by=f"{HERE}:too_much"),
        arms.fault("kill a worker", FORWARD, nth=2),
        arms.fault("shortage in a task", "grun.lm.cache_build:collate", "replace", always=True, by=f"{HERE}:too_much"),
        arms.fault("kill a task", IN_A_SHARD, always=True),
    ]
    with training_on_one_cluster(make_recipe, tmp_path_factory.mktemp("memory"), environment(faults)) as train_it:
        yield train_it


@pytest.fixture
def recipe(train_it: TrainIt, make_recipe: Callable[..., Recipe], tmp_path: Path) -> Recipe:
    """On the cluster, with a cache of some shards."""
    return make_recipe(output=str(tmp_path / "outputs"), cache={"mode": "auto", "sequences_per_shard": 15})


@row(
    "memory",
    "an allocation that fails",
    where="`train`, one of two workers in step 3",
    sees="which worker, how much it asked for, and what to lower; exit status 2, and training is not tried again",
    broken=Injection("pipelines.shortage:is_shortage", "replace", always=True, by=f"{HERE}:no_shortage"),
)
def test_a_worker_that_cannot_have_memory(train_it: TrainIt, arms: Arms) -> None:
    with arms.armed("shortage in a worker"):
        run = train_it("shortage", status=2, train={"engine": "torch"})  # with two restarts, in vain and not made
    message = run.said.splitlines()[-1]
    assert message.startswith("error: worker 1 on "), message
    assert "got RuntimeError: can't allocate memory: you tried to allocate 1125899906842624 bytes" in message
    assert "; lower `train.batch_size`, or raise `train.num_workers`" in message
    assert "was killed" not in run.said  # the other worker ends itself
    assert run.steps == [1, 2]
    assert run.recorded.info.status == "FAILED"
    nothing_is_left()


@row(
    "memory",
    "SIGKILL, as by the kernel when memory runs out",
    where="`train`, more often than `train.max_failures`",
    sees="that the worker was killed, as by the kernel, what to lower then, and that the same command continues; exit status 2",
    broken=Injection("pipelines.trainer:cause_of_death", "replace", always=True, by=f"{HERE}:without_a_word"),
)
def test_a_worker_killed_more_often_than_allowed(train_it: TrainIt, arms: Arms) -> None:
    with arms.armed("kill a worker"):
        run = train_it("killed", status=2, train={"engine": "torch", "num_workers": 1, "max_failures": 0})
    assert run.said.splitlines()[-1].startswith(
        "error: training must survive with at most 0 restart(s), got one more failure: worker 0 was killed, as by the kernel when "
        "memory runs out (then lower `train.batch_size`, or raise `train.num_workers`"
    )
    nothing_is_left()


@row(
    "memory",
    "an allocation that fails",
    where="a build of the prefix cache, with `cache.mode: auto`",
    sees="what to lower; exit status 2, and no run without the cache, which would take more",
    broken=Injection("pipelines.shortage:is_shortage", "replace", always=True, by=f"{HERE}:no_shortage"),
)
def test_a_cache_that_cannot_have_memory(recipe: Recipe, arms: Arms) -> None:
    with arms.armed("shortage in a task"), pytest.raises(ClusterError) as raised:
        ensure_cache(recipe, plan(recipe), [recipe])
    assert "got RuntimeError: can't allocate memory: you tried to allocate 1125899906842624 bytes" in str(raised.value)
    assert "lower `cache.batch_size` or `cache.sequences_per_shard`" in str(raised.value)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@row(
    "workers",
    "SIGKILL while writing a cache shard",
    where="a build of the prefix cache, between the files of a shard",
    sees="nothing: the task runs again, and the cache is the same, byte for byte",
    broken=Injection("pipelines.tasks:_start", "replace", always=True, by=f"{HERE}:once"),
)
def test_a_task_killed_while_it_writes_a_shard(recipe: Recipe, arms: Arms, tmp_path: Path) -> None:
    straight, killed = (recipe.replace({"output": str(tmp_path / name)}) for name in ("straight", "killed"))
    wanted = ensure_cache(straight, plan(straight), [straight])
    with arms.armed("kill a task"):
        found = ensure_cache(killed, plan(killed), [killed])
    assert wanted is not None
    assert found is not None
    assert files(found) == files(wanted)
    assert len(files(found)) > 6


@row(
    "memory",
    "SIGKILL, as by the kernel when memory runs out",
    where="a build of the prefix cache, more often than `train.max_failures`",
    sees="that its process was killed, as by the kernel, and what to lower; exit status 2",
    broken=Injection("pipelines.tasks:_result", "replace", always=True, by=f"{HERE}:as_ray_says"),
)
def test_a_task_killed_more_often_than_allowed(recipe: Recipe, arms: Arms) -> None:
    fragile = recipe.replace({"train": {"max_failures": 0}})
    with (
        arms.armed("kill a task"),
        pytest.raises(ClusterError, match=r"as the kernel does when memory runs out: lower `cache\.batch"),
    ):
        ensure_cache(fragile, plan(fragile), [fragile])
