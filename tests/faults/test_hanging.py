"""Processes that hang are noticed within `cluster.hang_seconds`, and replaced."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grun.config import Recipe
from pipelines.caching import ensure_cache
from pipelines.notices import telling
from pipelines.prepared import plan
from tests.faults.arming import Arms, nothing_is_left, rescue, stopped
from tests.faults.injection import Injection, environment
from tests.faults.table import row
from tests.faults.test_workers import ALL_REDUCE, ALONE, FORWARD
from tests.pipelines.runs import Run, TrainIt, training_on_one_cluster

pytestmark = [
    pytest.mark.slow,  # workers start
    pytest.mark.alone,  # a machine that is busy with others answers late
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]

HERE = "tests.faults.test_hanging"
HANG_SECONDS = 12


def for_ever(original: Callable[..., Any], *args: Any, **options: Any) -> None:
    """A fault: a deadlock."""
    threading.Event().wait()


def patient(original: Callable[..., Any], recipe: Recipe) -> dict[str, str]:
    """Safeguard broken: Ray Train's own patience."""
    return {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "1000"}


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Arms:
    return Arms(tmp_path_factory.mktemp("hanging") / "arms")


@pytest.fixture(scope="module")
def train_it(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., Recipe], arms: Arms) -> Iterator[TrainIt]:
    faults = [
        arms.fault("stop in forward", FORWARD, "stop", nth=2, rank=0),
        arms.fault("stop in an all-reduce", ALL_REDUCE, "stop", nth=7, rank=1),
        arms.fault("deadlock", FORWARD, "replace", nth=3, by=f"{HERE}:for_ever"),
        arms.fault("stop in a task", "grun.lm.cache_build:file_digest", "stop", always=True),
    ]
    output = tmp_path_factory.mktemp("hanging")
    with training_on_one_cluster(make_recipe, output, environment(faults), hang_seconds=HANG_SECONDS) as train_it:
        yield train_it


@pytest.fixture(scope="module")
def straight(train_it: TrainIt) -> Run:
    """An uninterrupted run of two workers."""
    return train_it("straight", train={"engine": "torch"})


@pytest.fixture(scope="module")
def hung(train_it: TrainIt, arms: Arms) -> Run:
    """A run of two workers; rank 0 is stopped in the forward of step 2, and rank 1 of the next ones in the all-reduce of step 3."""
    with arms.armed("stop in forward", "stop in an all-reduce"), rescue():
        return train_it("hung", train={"engine": "torch"})


@row(
    "hangs",
    "SIGSTOP in forward",
    where="`train`, one of two workers in step 2",
    sees="that the worker did not answer for `cluster.hang_seconds` (10 minutes; here 12 s) and is replaced",
    broken=Injection("pipelines.cluster:hang_environment", "replace", always=True, by=f"{HERE}:patient"),
)
def test_a_worker_stopped_in_forward(hung: Run, straight: Run) -> None:
    said = f"hung: worker 0 did not answer for {HANG_SECONDS} s and is replaced; the workers start again from the last checkpoint"
    assert said in hung.said.splitlines(), hung.said
    assert hung.steps == [1, 2, 3, 4, 5, 6]
    hung.has_adapter_of(straight, atol=0)
    hung.counts_every_step_once(straight)
    assert stopped() == []
    nothing_is_left()


@row(
    "hangs",
    "SIGSTOP in an all-reduce",
    where="`train`, one of two workers in step 3; the other one waits for it",
    sees="as above",
    broken=Injection("pipelines.cluster:hang_environment", "replace", always=True, by=f"{HERE}:patient"),
)
def test_a_worker_stopped_in_an_all_reduce(hung: Run, straight: Run) -> None:
    said = f"hung: worker 1 did not answer for {HANG_SECONDS} s and is replaced; the workers start again from the last checkpoint"
    assert said in hung.said.splitlines(), hung.said
    hung.has_adapter_of(straight, atol=0)


@row(
    "hangs",
    "a deadlock",
    where="`train`, a worker that waits for ever in step 3, and answers Ray",
    sees="that it finished no step for three times `cluster.hang_seconds` and is replaced, and the file with where it stood",
    broken=Injection("pipelines.watchdog:Watchdog._look", "skip", always=True),
)
def test_a_worker_in_a_deadlock(train_it: TrainIt, straight: Run, arms: Arms) -> None:
    with arms.armed("deadlock"), rescue():
        run = train_it("deadlock", train=ALONE)
    [line] = [
        line
        for line in run.said.splitlines()
        if f" finished no step for {3 * HANG_SECONDS} s and is replaced; where it stood is in " in line
    ]
    assert line.startswith("deadlock: worker 0 on ")
    assert "for_ever" in Path(line.rsplit(" ", 1)[1]).read_text(encoding="utf-8")
    assert run.steps == [1, 2, 3, 4, 5, 6]
    run.has_adapter_of(straight)
    nothing_is_left()


@row(
    "hangs",
    "SIGSTOP in a task",
    where="a build of the prefix cache, between the files of a shard",
    sees="that the task did not answer for `cluster.hang_seconds` and is started again",
    broken=Injection("pipelines.pulse:PulseWatch.__call__", "skip", always=True),
)
def test_a_task_that_is_stopped(train_it: TrainIt, straight: Run, arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = straight.recipe.replace({"output": str(straight.recipe.output / "task")})
    with arms.armed("stop in a task"), rescue(), telling():
        folder = ensure_cache(recipe, plan(recipe), [recipe])
    assert f"a task did not answer for {HANG_SECONDS} s and is started again" in capsys.readouterr().err
    assert folder is not None
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert stopped() == []
