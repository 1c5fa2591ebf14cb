"""Workers of training that are killed, alone and together: the run ends with the adapter of one that nothing happened to."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from grun.config import Recipe
from grun.training.checkpoint import Found
from pipelines.caching import ensure_cache
from pipelines.prepared import plan
from pipelines.slots import open_slots, train_on_slot
from tests.faults.arming import Arms, named, nothing_is_left, stopped, until
from tests.faults.injection import Injection, environment
from tests.faults.table import row
from tests.pipelines.runs import Run, TrainIt, training_on_one_cluster

pytestmark = [
    pytest.mark.slow,  # workers start
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]

HERE = "tests.faults.test_workers"
FORWARD, ALL_REDUCE = "grun.training.loop:forward", "grun.training.engine:TorchEngine.sum_"
ALONE = {"engine": "torch", "num_workers": 1}


def from_the_beginning(original: Callable[..., Any], *args: Any, **options: Any) -> Found:
    """Safeguard broken: a checkpoint is not read."""
    return Found(None)


def save_and_keep(original: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Safeguard broken: nothing is cleared away where checkpoints are written."""
    with mock.patch.object(shutil, "rmtree"):
        original(*args, **options)


def never_again(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Safeguard broken: workers are not started again."""
    return original(*args, **{**options, "max_failures": 0})


def forgiving_nothing(original: Callable[..., Any], hub: Any, max_crashes: int) -> None:
    """Safeguard broken: a trial whose slot crashed is given up."""
    original(hub, 0)


def whole_batch(original: Callable[..., Any], sampler: Any, step: int, **options: Any) -> Any:
    """Safeguard broken: workers do not divide the batch among them."""
    return original(sampler, step)


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Arms:
    return Arms(tmp_path_factory.mktemp("workers") / "arms")


@pytest.fixture(scope="module")
def train_it(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., Recipe], arms: Arms) -> Iterator[TrainIt]:
    faults = [
        arms.fault("forward of step 4", FORWARD, nth=4),
        arms.fault("forward of the third step", FORWARD, nth=3),
        arms.fault("checkpoint", "grun.training.optimizer:AdapterOptimizer.state"),  # one of its two files is written
        # two of the probe before training, one each for steps 1 and 2, two of the probe after them
        arms.fault("all-reduce of step 3", ALL_REDUCE, nth=7, rank=1),
        *(arms.fault(f"stop {rank}", FORWARD, "stop", nth=3, rank=rank) for rank in (0, 1)),
    ]
    with training_on_one_cluster(make_recipe, tmp_path_factory.mktemp("workers"), environment(faults)) as train_it:
        yield train_it


@pytest.fixture(scope="module")
def straight_alone(train_it: TrainIt) -> Run:
    """An uninterrupted run of one worker."""
    return train_it("straight-alone", train=ALONE)


@pytest.fixture(scope="module")
def straight(train_it: TrainIt) -> Run:
    """An uninterrupted run of two DeepSpeed workers."""
    return train_it("straight")


@pytest.fixture(scope="module")
def killed_alone(train_it: TrainIt, arms: Arms) -> Run:
    """A run of one worker that is killed twice: as it writes its first checkpoint, and in the forward of step 4."""
    with arms.armed("checkpoint", "forward of step 4"):
        return train_it("killed-alone", train=ALONE)


@row(
    "workers",
    "SIGKILL in forward",
    where="`train`, the only worker, in step 4",
    sees="why the worker is replaced; the run ends as ever",
    broken=Injection("grun.training.checkpoint:Checkpoints.find", "replace", always=True, by=f"{HERE}:from_the_beginning"),
)
def test_a_worker_killed_in_forward(killed_alone: Run, straight_alone: Run) -> None:
    died = "worker 0 was killed, as by the kernel when memory runs out"
    assert killed_alone.said.count(died) == 2, killed_alone.said
    assert killed_alone.said.count("the workers start again from the last checkpoint") == 2
    assert killed_alone.steps == [1, 2, 3, 4, 5, 6]
    assert killed_alone.outcome["wall_seconds"] is None, "it went on from the checkpoint of step 2, and did not begin again"
    killed_alone.has_adapter_of(straight_alone, atol=0)
    killed_alone.counts_every_step_once(straight_alone)
    nothing_is_left()


@row(
    "workers",
    "SIGKILL between the files of a checkpoint",
    where="`train`, in the first checkpoint",
    sees="why the worker is replaced; no part of a checkpoint stays",
    broken=Injection("grun.training.checkpoint:Checkpoints.save", "replace", always=True, by=f"{HERE}:save_and_keep"),
)
def test_a_worker_killed_while_it_writes_a_checkpoint(killed_alone: Run, straight_alone: Run) -> None:
    killed_alone.has_adapter_of(straight_alone, atol=0)
    kept, wanted = (
        sorted(path.name for path in (run.folder / "checkpoints").iterdir()) for run in (killed_alone, straight_alone)
    )
    assert kept == wanted == ["step00000004", "step00000006"]


@row(
    "workers",
    "SIGKILL in an all-reduce",
    where="`train`, one of two DeepSpeed workers in step 3; the other one waits for it",
    sees="why the workers are replaced; the run ends as ever",
    broken=Injection("pipelines.trainer:fit_workers", "replace", always=True, by=f"{HERE}:never_again"),
)
def test_a_worker_killed_in_an_all_reduce(train_it: TrainIt, straight: Run, arms: Arms) -> None:
    with arms.armed("all-reduce of step 3"):
        killed = train_it("killed")
    assert killed.said.count("the workers start again from the last checkpoint") == 1
    assert killed.steps == [1, 2, 3, 4, 5, 6]
    killed.has_adapter_of(straight, atol=0)
    killed.counts_every_step_once(straight)
    nothing_is_left()


@contextmanager
def stopped_on_a_slot(straight: Run, arms: Arms, name: str) -> Iterator[tuple[Run, Future[list[int]]]]:
    """A trial on a warm slot both of whose workers are stopped in step 3, and the steps of its reports by and by."""
    recipe = straight.recipe
    prepared = plan(recipe)
    trial = Run(recipe.replace({"name": name}))
    trial.folder.mkdir(parents=True)
    cache = ensure_cache(recipe, prepared, [recipe])
    with (
        ThreadPoolExecutor(1) as pool,  # outermost, as reports that never end do so with the slots
        open_slots(recipe, prepared, cache, recipe.output / f"sweep-{name}", 1) as hub,
        arms.armed("stop 0", "stop 1"),
    ):
        reports = pool.submit(lambda: [report["step"] for report in train_on_slot(hub, name, recipe, trial.folder)])
        until(lambda: len(stopped()) == 2 or reports.done())
        yield trial, reports


@row(
    "workers",
    "SIGKILL to all workers of a trial at once",
    where="a warm slot of `sweep`, two DeepSpeed workers in step 3",
    sees="why the slot's workers are replaced; the trial ends as ever",
    broken=Injection("pipelines.slots:TrialHub.__init__", "replace", always=True, by=f"{HERE}:forgiving_nothing"),
)
def test_all_workers_of_a_trial_killed_at_once(train_it: TrainIt, straight: Run, arms: Arms) -> None:
    with stopped_on_a_slot(straight, arms, "trial") as (trial, reports):
        for worker in stopped():  # none of them sees another one die
            worker.kill()
        assert reports.result(timeout=300) == [2, 4, 6]
    assert trial.steps == [1, 2, 3, 4, 5, 6]
    trial.has_adapter_of(straight, atol=0)
    nothing_is_left()


def _leader(title: str, what: str) -> Callable[[Any], Any]:
    return row(
        "workers",
        f"SIGKILL to {what} of a slot",
        where="a warm slot of `sweep`, two DeepSpeed workers in step 3",
        sees="that the slot is opened again; the trial ends as ever, and waits for nothing that the lost one had reserved",
        broken=Injection("pipelines.run_groups:remove_placement_group", "skip", always=True),
        case=title,
    )


@_leader("TrainController", "the controller of Ray Train")
@_leader("_SlotHolder", "the process that holds the run")
@pytest.mark.parametrize("title", ["TrainController", "_SlotHolder"])
def test_the_process_that_leads_a_slot_is_killed(
    title: str, train_it: TrainIt, straight: Run, arms: Arms, capsys: pytest.CaptureFixture[str]
) -> None:
    with stopped_on_a_slot(straight, arms, f"of-{title}") as (trial, reports):
        [leader] = named(title)
        leader.kill()
        assert reports.result(timeout=120) == [2, 4, 6]
    assert "slot 0 lost the process that leads its workers" in capsys.readouterr().err
    assert trial.steps == [1, 2, 3, 4, 5, 6]
    trial.has_adapter_of(straight, atol=0)
    nothing_is_left()


@row(
    "workers",
    "from 2 workers to 1 and back to 2",
    where="`train`, killed twice with `train.max_failures: 0`; the same command with another `train.num_workers`",
    sees="what happened, and that the same command continues; then `continuing from step 2 of 6`",
    broken=Injection("grun.data.batches:PairedSampler.batch", "replace", always=True, by=f"{HERE}:whole_batch"),
)
def test_a_run_goes_on_with_fewer_workers_and_with_more_again(train_it: TrainIt, straight: Run, arms: Arms) -> None:
    for num_workers in (2, 1):
        with arms.armed("forward of the third step"):
            ended = train_it("elastic", status=2, train={"num_workers": num_workers, "max_failures": 0})
        said = ended.said.splitlines()[-1]
        assert said.startswith("error: training must survive with at most 0 restart(s), got one more failure: worker "), said
        assert said.endswith("the last checkpoint is kept, and the same command continues from it")
    elastic = train_it("elastic", train={"num_workers": 2})
    assert "continuing from step 4 of 6" in elastic.said
    assert elastic.steps == [1, 2, 3, 4, 5, 6]
    elastic.has_adapter_of(straight)
    elastic.counts_every_step_once(straight, rel=1e-5)
    nothing_is_left()
