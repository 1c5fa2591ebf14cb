"""Full disks and read-only ones, really mounted: one message that says what to free, and the same command goes on."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from grun.config import Recipe
from grun.errors import ConfigError, DiskError
from grun.training import MetricsSpool, read_spool_lines
from pipelines.console import check_writable
from pipelines.sweep_record import read_trials
from pipelines.tracking import Tracker
from tests.faults.injection import Injection
from tests.faults.moments import watched
from tests.faults.one_cluster import Commands, commands
from tests.faults.small_disk import only_root, read_only, small_disk
from tests.faults.table import row
from tests.faults.taught import TAUGHT

pytestmark = [
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]

WATCHED = (
    "grun.training.checkpoint:save_checkpoint",
    "grun.training.spool:add_line",
    "grun.adapters.folder:save_adapter",
    "grun.lm.cache_build:write_shard",
    "pipelines.adapter_scoring:score_adapter",
)

SWEPT: dict[str, Any] = {
    **TAUGHT,
    "train": {"epochs": 2, "num_workers": 1, "engine": "torch", "report_every": 1},
    "cluster": {"num_cpus": 2, "object_store_mb": 80},
    "sweep": {"space": "gate_threshold", "num_trials": 1, "scheduler": "none"},
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disks")


@pytest.fixture(scope="module")
def new(make_recipe: Callable[..., Recipe], output: Path) -> Callable[..., Recipe]:
    """A recipe of one worker and six steps, with a checkpoint every two."""

    def new(name: str, **above: Any) -> Recipe:
        train = {"engine": "torch", "num_workers": 1, **above.pop("train", {})}
        return make_recipe(**{"name": name, "output": str(output), "cache": {"mode": "require"}, "train": train, **above})

    return new


@pytest.fixture(scope="module")
def run(new: Callable[..., Recipe], output: Path) -> Iterator[Commands]:
    with commands(new("cluster"), output / "moments", [watched(where) for where in WATCHED]) as found:
        yield found


@pytest.fixture(scope="module")
def straight(run: Commands, new: Callable[..., Recipe]) -> Path:
    """Where an uninterrupted run is."""
    recipe = new("straight")
    run("train", recipe)
    return recipe.output / "runs" / "straight"


def forgetful(function: Callable[[MetricsSpool], None], spool: MetricsSpool) -> None:
    """A spool that drops what the disk does not take at once."""
    try:
        function(spool)
    except DiskError:
        spool._waiting.clear()


def adapter_of(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter.safetensors").read_bytes()


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error that is all there is to say; no traceback."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def left_behind(folder: Path) -> list[str]:
    """Partial files and folders, which must not pile up."""
    return [
        str(path)
        for path in folder.rglob("*")
        if "partial" in path.name or path.name.endswith(".tmp") or path.name.endswith(".room")
    ]


@row(
    "disks",
    "the disk of a run fills up, for real (a small tmpfs)",
    where="train, two workers, while the checkpoint of step 4 is written",
    sees="`the disk of '.../checkpoints/step00000004' has no room left (... 0 of 4.19 MB are free); free space there`, status 2, no restart",
    lost="nothing: the same command goes on from step 2",
    broken=Injection("grun.writing:disk_error", "skip", always=True),
)
@pytest.mark.slow
def test_a_full_disk_at_a_checkpoint(
    run: Commands, new: Callable[..., Recipe], straight: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = new("checkpoint", train={"num_workers": 2}), output / "runs" / "checkpoint"
    with small_disk(folder) as disk:
        run.moments.ask("save_checkpoint", "fill", folder, nth=2)
        run("train", recipe, status=2)
        message = said(capsys)
        assert f"the disk of {str(folder / 'checkpoints' / 'step00000004')!r}, which has no room left" in message
        assert "0 of 4.19 MB are free" in message
        assert "free space there" in message
        assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step00000002"]
        disk.free()
        run("train", recipe)
        assert "continuing from step 2 of 6" in capsys.readouterr().err
        assert list(read_spool_lines(folder / "metrics.jsonl")) == [1, 2, 3, 4, 5, 6]
        assert left_behind(folder) == []
        mine, theirs = (load_file(f / "adapter" / "adapter.safetensors") for f in (folder, straight))
        assert all((mine[name] - theirs[name]).abs().max() <= 1e-6 for name in theirs)  # two workers add up in another order


@row(
    "disks",
    "no room for a line of the spool (injected: small lines fit into a page that is there)",
    where="train, step 3",
    sees="nothing, where there is room by the next report; else as for a checkpoint, with the spool's name, status 2",
    broken=Injection("grun.training.spool:MetricsSpool._append", "replace", always=True, by="tests.faults.test_disks:forgetful"),
)
@pytest.mark.slow
def test_no_room_for_a_line_of_the_spool_by_injection(
    run: Commands, new: Callable[..., Recipe], straight: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = new("spool"), output / "runs" / "spool"
    spool = folder / "metrics.jsonl"
    run.moments.ask("add_line", "refuse", spool, nth=3)
    run("train", recipe)
    capsys.readouterr()
    assert [(n, line.metrics) for n, line in read_spool_lines(spool).items()] == [
        (n, line.metrics) for n, line in read_spool_lines(straight / "metrics.jsonl").items()
    ]
    assert adapter_of(folder) == adapter_of(straight)


@row(
    "disks",
    "the disk of a run fills up, for real",
    where="train, while the adapter is written",
    sees="`the disk of '.../adapter' has no room left`, status 2",
    lost="nothing: the same command writes it from the last checkpoint",
    broken=Injection("pipelines.last_word:write_error", "skip", always=True),
)
@pytest.mark.slow
def test_a_full_disk_at_the_adapter(
    run: Commands, new: Callable[..., Recipe], straight: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = new("adapter"), output / "runs" / "adapter"
    with small_disk(folder) as disk:
        run.moments.ask("save_adapter", "fill", folder)
        run("train", recipe, status=2)
        assert f"the disk of {str(folder / 'adapter')!r}, which has no room left" in said(capsys)
        assert not (folder / "adapter").exists()
        disk.free()
        run("train", recipe)
        assert "continuing from step 6 of 6" in capsys.readouterr().err
        assert adapter_of(folder) == adapter_of(straight)
        assert left_behind(folder) == []


@row(
    "disks",
    "the disk of the prefix cache fills up, for real, after its size was found to fit",
    where="train, while a file of the cache is written",
    sees="`the disk of '.../shard-00000.safetensors' has no room left`, status 2",
    lost="nothing: the same command builds what is missing",
    broken=Injection("grun.writing:disk_error", "skip", always=True),
)
@pytest.mark.slow
def test_a_full_disk_at_a_file_of_the_cache(
    run: Commands, new: Callable[..., Recipe], straight: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = new("shard", train={"probe_rows": 3})  # other rows: another cache
    with small_disk(output / "cache") as disk:
        run.moments.ask("write_shard", "fill", disk.folder)
        run("train", recipe, status=2)
        message = said(capsys)
        assert "shard-00000.safetensors', which has no room left" in message
        assert not (output / "runs" / "shard" / "checkpoints").exists()
        disk.free()
        run("train", recipe)
        capsys.readouterr()
        assert adapter_of(output / "runs" / "shard") == adapter_of(straight)
        assert left_behind(disk.folder) == []


@row(
    "disks",
    "the disk of MLflow's SQLite file fills up, for real",
    where="train, from the first checkpoint on",
    sees="metrics wait in the spool; at the end `MLflow must be able to ..., got ... disk is full ...; free space on its disk`, status 2",
    lost="nothing: the same command records what is missing, and trains no step",
    broken=Injection("pipelines.mlflow_store:_remedy", "replace", always=True, by="tests.faults.test_disks:no_remedy"),
)
@pytest.mark.slow
def test_a_full_disk_at_mlflow(
    run: Commands, new: Callable[..., Recipe], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = new("tracked", output=str(output / "tracked"), tracking={"patience_seconds": 5})
    with small_disk(output / "tracked" / "mlflow") as disk:
        run.moments.ask("save_checkpoint", "fill", disk.folder)
        run("train", recipe, status=2)
        message = said(capsys)
        assert "MLflow must be able to" in message
        assert "database or disk is full (store" in message
        assert "free space on its disk; what is done is kept in the output folder, and the same command goes on" in message
        disk.free()
        spool = output / "tracked" / "runs" / "tracked" / "metrics.jsonl"
        before = spool.read_bytes()
        run("train", recipe)
        capsys.readouterr()
        assert spool.read_bytes() == before
        tracker = Tracker.open(recipe.tracking, recipe.output)
        [found] = tracker.search("tags.kind = 'train'")
        history = tracker.client.get_metric_history(found.info.run_id, "train/loss")
        assert sorted(point.step for point in history) == [1, 2, 3, 4, 5, 6]
        assert found.info.status == "FINISHED"


def no_remedy(_function: object, _reason: str) -> str:
    return "look"


@row(
    "disks",
    "the disk of a sweep fills up, for real",
    where="sweep, while a trial's adapter is scored",
    sees="`the disk of '.../trials/...' has no room left`, status 2; the trial is not counted as failed",
    lost="nothing: the same command goes on, and trains no trial twice",
    broken=Injection("pipelines.sweep_record:refused_by_disk", "skip", always=True),
)
@pytest.mark.slow
def test_a_full_disk_in_a_sweep(
    run: Commands, new: Callable[..., Recipe], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.parse({**SWEPT, "output": str(output)})
    folder = output / "sweeps" / "swept"
    with small_disk(folder, kilobytes=16384) as disk:  # a trial is scored at eleven thresholds
        run.moments.ask("score_adapter", "fill", folder)
        run("sweep", recipe, status=2)
        message = said(capsys)
        assert str(folder / "trials") in message
        assert "which has no room left" in message
        [trial] = read_trials(folder)
        assert (trial.done, trial.failure) == (False, None)
        trained = (folder / "trials" / trial.trial_id / "metrics.jsonl").read_bytes()
        disk.free()
        run("sweep", recipe)
        capsys.readouterr()
        [trial] = read_trials(folder)
        assert (trial.done, trial.failure) == (True, None)
        assert (folder / "trials" / trial.trial_id / "metrics.jsonl").read_bytes() == trained
        assert left_behind(folder / "trials") == []


@row(
    "disks",
    "read-only output, a folder of it on another mount, or one of somebody else's",
    where="every verb that writes, before any work",
    sees="`output` must be a folder that can be written to, got ... (Read-only file system); choose another with `--output`, status 2",
    broken=Injection("pipelines.console:check_writable", "skip", always=True),
)
def test_what_cannot_be_written_to_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for folder in (tmp_path, tmp_path / "runs"):
        with read_only(folder), pytest.raises(ConfigError, match=rf"got '{folder}' \(Read-only file system\)"):
            check_writable(tmp_path)
    with small_disk(tmp_path / "mlflow") as disk:
        disk.fill()
        with pytest.raises(ConfigError, match=r"mlflow' \(No space left on device\)"):
            check_writable(tmp_path)
        disk.free()
        check_writable(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["mlflow", "runs"]


def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    only_root()
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.owner() == "root" and folder != Path("/tmp"):
            folder.chmod(0o755)
    child = os.fork()
    if not child:  # as nobody
        try:
            os.setuid(65534)
            check_writable(tmp_path)
            os._exit(1)
        except ConfigError as error:
            os._exit(0 if "(Permission denied)" in str(error) else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
