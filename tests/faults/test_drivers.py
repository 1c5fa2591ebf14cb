"""A sweep whose drivers are killed, one after another, and the same command each time: it ends as if nothing had been.

machine   all processes at once, in the middle of a trial
head      the head of the embedded cluster, while a trial is scored; the clock has gone back an hour meanwhile
driver    the sweep's own process, while a trial's record is half written; the clock is a day ahead
trial     the process in which Tune runs a trial, with a report in its hands
"""

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from mlflow.entities import ViewType
from optuna.trial import TrialState
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from grun.config import Recipe, TrackingConfig
from pipelines.journal import read_entries
from pipelines.sweep_record import TrialRecord, read_trials
from pipelines.sweep_search import study_of
from pipelines.tracking import Tracker
from tests.clusters import running_cluster
from tests.faults.commands import Started, finished, running
from tests.faults.holding_still import at, hold, reached
from tests.faults.injection import CLOCK, Injection
from tests.faults.table import row
from tests.faults.taught import TAUGHT
from tests.pipelines.processes import Ended
from tune_spaces import SPACES

pytestmark = [
    pytest.mark.slow,  # clusters start
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]

RECIPE: dict[str, Any] = {
    **TAUGHT,
    "train": {"epochs": 2, "num_workers": 1, "engine": "torch", "report_every": 1},
    "cluster": {"num_cpus": 2, "object_store_mb": 80},
    "sweep": {"num_trials": 4, "grace_reports": 1, "reduction_factor": 2, "max_concurrent": 1},
}
HOUR, DAY = 3600, 24 * 3600


@dataclass
class Sweep:
    """A sweep's output folder, and how its commands ended."""

    output: Path
    ended: list[Ended] = field(default_factory=list)
    orphans: list[list[str]] = field(default_factory=list)
    rungs_then: list[dict[str, Any]] = field(default_factory=list)
    """Rungs when the machine was lost."""
    study_then: int = 0
    """Trials that Optuna knew when the driver was lost."""
    finished_then: dict[str, int] = field(default_factory=dict)
    """When the spools of trials that were done were last written to."""

    @property
    def folder(self) -> Path:
        return self.output / "sweeps" / "swept"

    @property
    def trials(self) -> list[TrialRecord]:
        return read_trials(self.folder)

    @property
    def rungs(self) -> list[dict[str, Any]]:
        return list(read_entries(self.folder / "rungs.jsonl"))

    def spools(self) -> dict[str, int]:
        done = [trial.trial_id for trial in self.trials if trial.done]
        return {name: (self.folder / "trials" / name / "metrics.jsonl").stat().st_mtime_ns for name in done}

    def adapters(self) -> dict[str, bytes]:
        files = self.folder.glob("trials/*/adapter/adapter.safetensors")
        return {file.parts[-3]: file.read_bytes() for file in files}

    def options(self) -> list[str]:
        file = self.output.with_suffix(".yaml")
        file.write_text(yaml.safe_dump({**RECIPE, "output": str(self.output)}), encoding="utf-8")
        return ["--recipe", str(file)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """An uninterrupted sweep."""
    sweep = Sweep(tmp_path_factory.mktemp("straight") / "outputs")
    sweep.ended.append(finished("sweep", *sweep.options()))
    assert sweep.ended[0].status == 0, sweep.ended[0].err
    return sweep


def half_written(write: Callable[..., None], record: TrialRecord, folder: Path) -> None:
    """What takes the place of `TrialRecord.write`: it comes half-way."""
    if not record.done:
        write(record, folder)
        return
    (folder / ".trial.json.partial").write_text(record.model_dump_json()[:40])
    hold(write)


@contextmanager
def held(sweep: Sweep, where: str, *, nth: int = 1, by: str | None = None, clock: int = 0) -> Iterator[Started]:
    """The sweep's command, in a process of which somebody is where it was wanted."""
    place, variables = at(where, sweep.output.parent, nth=nth, name=f"attempt{len(sweep.ended)}", by=by)
    with running("sweep", *sweep.options(), injections=[place], **variables, **{CLOCK: str(clock)}) as started:
        reached(started, variables)
        yield started
        sweep.ended.append(started.ended())
        sweep.orphans.append(started.survivors())


@pytest.fixture(scope="module")
def wounded(straight: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The same sweep in another folder, on the same base and caches, after all that can happen to its drivers."""
    sweep = Sweep(tmp_path_factory.mktemp("wounded") / "outputs")
    for name in ("models", "reference", "cache"):
        shutil.copytree(straight.output / name, sweep.output / name)
    # in the second step of the second trial: it is in the spool, and in no checkpoint
    with held(sweep, "pipelines.worker:append_entry", nth=6) as started:
        sweep.rungs_then = sweep.rungs
        started.kill_all()
    with held(sweep, "pipelines.sweep_trial:_score", clock=-HOUR) as started:
        [head] = started.processes("gcs_server")
        head.kill()
    by = "tests.faults.test_drivers:half_written"
    with held(sweep, "pipelines.sweep_record:TrialRecord.write", by=by, clock=DAY) as started:
        sweep.finished_then = sweep.spools()
        sweep.study_then = len(sweep.trials)
        started.process.kill()
    # four reports of the trial that was trained are handed in again; the fifth is the first of a new one
    dies = Injection("pipelines.entry:with_objectives", nth=5, once=str(sweep.output.parent / "died"))
    sweep.ended.append(finished("sweep", *sweep.options(), injections=[dies], **{CLOCK: str(-HOUR)}))
    assert sweep.ended[-1].status == 0, sweep.ended[-1].err
    return sweep


def nothing(*_arguments: Any) -> Iterator[Any]:
    """What takes the place of a function that reads what is known."""
    return iter(())


def every_step(_function: object, spool: Any) -> Any:
    """What takes the place of a spool that gets each step once."""
    return spool


def never(*_arguments: Any) -> Callable[[], None]:
    """What takes the place of a look at the head."""
    return lambda: None


def forgets(init: Callable[..., None], search: Any, *arguments: Any) -> None:
    """What takes the place of `TrialSearch.__init__`: it has no trials that were begun."""
    init(search, *arguments)
    search.begun.clear()


@row(
    "drivers",
    "the whole machine is lost",
    where="`sweep`, in the middle of a trial",
    sees="the same command continues; ASHA has its rungs",
    broken=Injection("pipelines.sweep_scheduler:read_entries", "replace", always=True, by="tests.faults.test_drivers:nothing"),
)
def test_rungs_outlive_the_machine(straight: Sweep, wounded: Sweep) -> None:
    assert wounded.ended[0].status == -signal.SIGKILL
    assert wounded.orphans[0] == []
    assert wounded.rungs_then == straight.rungs[:5]
    assert wounded.rungs == straight.rungs
    assert [trial.stopped_early for trial in wounded.trials] == [trial.stopped_early for trial in straight.trials]
    assert {trial.stopped_early for trial in straight.trials} == {True, False}


@row(
    "drivers",
    "the Ray head dies",
    where="`sweep`, while a trial is scored",
    sees="one message, status 2; the same command continues",
    broken=Injection("pipelines.head_watch:_own_head", "replace", always=True, by="tests.faults.test_drivers:never"),
)
def test_a_dead_head_is_said_and_the_command_ends(wounded: Sweep) -> None:
    message = wounded.ended[1].message
    assert "the Ray cluster must stay up while a command runs on it, got the end of its process `gcs_server`" in message
    assert message.endswith("give the same command again: it continues where this one stopped")
    assert wounded.orphans[1] == []


@row(
    "drivers",
    "the Tune driver is killed",
    where="`sweep`, while a trial's record is half written",
    sees="the same command continues; Optuna has its study, no trial runs twice",
    broken=Injection(
        "pipelines.sweep_search:TrialSearch.__init__", "replace", always=True, by="tests.faults.test_drivers:forgets"
    ),
)
def test_the_study_outlives_its_driver_and_no_trial_runs_twice(straight: Sweep, wounded: Sweep) -> None:
    assert wounded.ended[2].status == -signal.SIGKILL
    assert wounded.orphans[2] == []
    assert wounded.study_then == 2
    assert [trial.point for trial in wounded.trials] == [trial.point for trial in straight.trials]
    assert [trial.trial_id for trial in wounded.trials] == ["00001", "00002", "00003", "00004"]
    assert all(trial.done and trial.failure is None for trial in wounded.trials)
    study = study_of(Recipe.parse(RECIPE), SPACES["joint"], wounded.trials)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert list(wounded.finished_then) == ["00001"]
    assert wounded.finished_then.items() <= wounded.spools().items()


@row(
    "drivers",
    "a trial's driver is killed",
    where="`sweep`, with a report in its hands",
    sees="nothing: Tune starts it again, its slot goes on",
    broken=Injection("pipelines.slots:read_entries", "replace", always=True, by="tests.faults.test_drivers:nothing"),
)
def test_a_killed_trial_loses_no_report(straight: Sweep, wounded: Sweep) -> None:
    assert (wounded.output.parent / "died").exists()
    assert "continuing: 1 of 4 trials are done" in wounded.ended[3].err
    assert wounded.rungs == straight.rungs
    assert wounded.adapters() == straight.adapters()
    assert [trial.result for trial in wounded.trials] == [trial.result for trial in straight.trials]


@row(
    "clocks",
    "the clock goes back an hour, and forward a day",
    where="`sweep`, between a command and its continuation",
    sees="nothing",
    broken=Injection("pipelines.worker:_new_steps", "replace", always=True, by="tests.faults.test_drivers:every_step"),
)
def test_a_clock_that_jumps_changes_nothing(straight: Sweep, wounded: Sweep) -> None:
    started = [trial.started for trial in wounded.trials]
    assert started != sorted(started), "the clock has jumped"
    for sweep in (straight, wounded):
        tracker = Tracker.open(TrackingConfig(), sweep.output)
        runs = tracker.client.search_runs(
            [tracker.experiment_id], "tags.kind = 'trial' AND attributes.status = 'FINISHED'", ViewType.ACTIVE_ONLY
        )
        assert sorted(run.info.run_name for run in runs) == [trial.trial_id for trial in sweep.trials]
        for run in runs:
            history = tracker.client.get_metric_history(run.info.run_id, "train/loss")
            # MLflow lists them by their time, which is an hour early for some
            assert sorted(point.step for point in history) == list(range(1, len(history) + 1)), "each step once"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster that is there before and after the command."""
    with running_cluster(num_cpus=2) as cluster:
        yield cluster


@row(
    "drivers",
    "the Tune driver is killed",
    where="`sweep` on a cluster of `RAY_ADDRESS`, while a trial trains",
    sees="the same command continues; the cluster has its CPUs back",
    broken=Injection("pipelines.slots:_on_head", "replace", always=True, by="tests.faults.test_drivers:detached"),
)
def test_a_cluster_gets_back_what_a_dead_driver_held(cluster: Cluster, straight: Sweep, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "outputs")
    for name in ("models", "reference", "cache"):
        shutil.copytree(straight.output / name, sweep.output / name)
    place, variables = at("pipelines.sweep_scheduler:CooperativeASHA._judge", tmp_path, nth=2)
    with running("sweep", *sweep.options(), injections=[place], RAY_ADDRESS=cluster.address, **variables) as started:
        reached(started, variables)
        workers = [process for process in psutil.process_iter() if _is_worker(process)]
        assert workers
        started.process.kill()
        started.process.wait()
        _gone, alive = psutil.wait_procs(workers, timeout=60)
        assert [" ".join(process.cmdline()) for process in alive] == []
    ray.init(address=cluster.address, log_to_driver=False)
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
    assert ray.available_resources()["CPU"] == 2


def _is_worker(process: psutil.Process) -> bool:
    """Whether it is one of the processes that do the work of a sweep: trials, slots and their workers."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(word in title for word in ("ray::_SlotHolder", "ray::TrialHub", "ray::RayTrainWorker", "ray::TrainController"))


def detached(options: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What takes the place of the options of hub and holders: they outlive their driver."""
    return {**options(), "lifetime": "detached"}
