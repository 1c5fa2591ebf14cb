"""Tracking against a real SQLite store: what is recorded, what happens twice, what happens when the store is away."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from grun.errors import OutageError, TrackingError
from pipelines.following import Spool
from pipelines.tracking import Tracker, flatten

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

TIME_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def tracker(store: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracker]:
    """A tracker with an experiment of the test's own, in a folder that nothing may be written to."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    yield Tracker(store, request.node.name, tmp_path / "artifacts")
    assert list(cwd.iterdir()) == []


def spool_line(step: int, **metrics: float) -> str:
    return json.dumps({"step": step, "time_ms": TIME_MS + step, "metrics": metrics}) + "\n"


def artifact(tracker: Tracker, run_id: str, name: str) -> Path:
    return Path(tracker.client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / name


def history(tracker: Tracker, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in tracker.client.get_metric_history(run_id, key)]


def test_a_deleted_experiment_is_refused(tracker: Tracker, tmp_path: Path) -> None:
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match="was deleted; restore it"):
        Tracker(tracker.store.uri, "test_a_deleted_experiment_is_refused", tmp_path)


def test_a_run_says_who_and_what_made_it(tracker: Tracker) -> None:
    parent = tracker.start_run("sweep", tags={"kind": "sweep"})
    child = tracker.start_run("trial", parent=parent)
    tags = tracker.client.get_run(child).data.tags
    assert tags["mlflow.parentRunId"] == parent
    assert tags["mlflow.user"]
    assert "/" not in tags["mlflow.source.name"]
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tracker.client.get_run(parent).data.tags["kind"] == "sweep"
    assert tracker.client.get_run(parent).info.run_name == "sweep"


def test_a_run_needs_no_git(tracker: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run_id = tracker.start_run("train")
    assert "mlflow.source.git.commit" not in tracker.client.get_run(run_id).data.tags


@pytest.mark.parametrize("key", ["sweep-1/trial-3", 'it\'s a "folder"/trial-3'])
def test_the_same_key_continues_the_same_run(tracker: Tracker, key: str) -> None:
    first = tracker.start_run("trial", key=key)
    tracker.end_run(first, "FAILED")
    again = tracker.start_run("trial", key=key)
    other = tracker.start_run("trial", key=f"{key}0")
    assert again == first != other
    assert tracker.client.get_run(first).info.status == "RUNNING"
    assert len(list(tracker.search(""))) == 2


@pytest.mark.parametrize(
    ("raised", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (SystemExit, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_ends_with_the_status_of_its_block(tracker: Tracker, raised: type[BaseException] | None, status: str) -> None:
    def block() -> None:
        with tracker.run("train") as run_id:
            run_ids.append(run_id)
            if raised is not None:
                raise raised

    run_ids: list[str] = []
    if raised is None:
        block()
    else:
        with pytest.raises(raised):
            block()
    info = tracker.client.get_run(run_ids[0]).info
    assert info.status == status
    assert info.end_time is not None


def test_a_store_that_is_away_does_not_hide_the_exception_of_a_run(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(run_id: str, status: str) -> None:
        raise ConnectionError("the store is away")

    def fail() -> None:
        with tracker.run("train"):
            monkeypatch.setattr(tracker.client, "set_terminated", away)
            raise ValueError("the news")

    with pytest.raises(ValueError, match="the news"):
        fail()


def test_children_of_killed_workers_are_closed_and_no_others(tracker: Tracker) -> None:
    parent, stranger = tracker.start_run("sweep"), tracker.start_run("other sweep")
    done, lost = tracker.start_run("trial", parent=parent), tracker.start_run("trial", parent=parent)
    elsewhere = tracker.start_run("trial", parent=stranger)
    tracker.end_run(done)
    assert tracker.end_children(parent) == [lost]
    statuses = [tracker.client.get_run(run_id).info.status for run_id in (parent, done, lost, elsewhere)]
    assert statuses == ["RUNNING", "FINISHED", "KILLED", "RUNNING"]


def test_flatten_joins_with_dots_and_cuts() -> None:
    values = {
        "train": {"epochs": 3, "pairing": "fixed", "extra": {}},
        "layers": [1, 2],
        "model": {"path": None},
        "text": "x" * 7000,
    }
    flat = flatten(values)
    assert flat.pop("text") == "x" * 6000
    assert flat == {
        "train.epochs": "3",
        "train.pairing": "fixed",
        "train.extra": "{}",
        "layers": "[1, 2]",
        "model.path": "None",
    }


def test_params_may_come_again_but_not_change(tracker: Tracker) -> None:
    run_id = tracker.start_run("train")
    recipe = {"train": {"epochs": 3}, "long": "x" * 7000, "many": {f"p{number}": number for number in range(150)}}
    tracker.log_params(run_id, recipe)
    tracker.log_params(run_id, recipe | {"seed": 0})
    params = tracker.client.get_run(run_id).data.params
    assert (params["train.epochs"], params["seed"], len(params)) == ("3", "0", 153)
    with pytest.raises(TrackingError, match=r"`train\.epochs` = '4' where run .* has '3'.*resume with the same recipe"):
        tracker.log_params(run_id, {"train": {"epochs": 4}, "new": 1})
    assert "new" not in tracker.client.get_run(run_id).data.params


def test_metrics_that_are_not_finite_become_tags(tracker: Tracker) -> None:
    run_id = tracker.start_run("train")
    tracker.log_metrics(run_id, {"train/loss": 0.5, "gate/auroc": math.nan, "retain/kl_nats": math.inf}, step=4)
    run = tracker.client.get_run(run_id)
    assert run.data.metrics == {"train/loss": 0.5}
    assert history(tracker, run_id, "train/loss") == [(4, 0.5)]
    assert run.data.tags["non_finite.gate/auroc"] == "nan at step 4"
    assert run.data.tags["non_finite.retain/kl_nats"] == "inf at step 4"


def test_shipping_a_spool_again_changes_nothing(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("train")
    spool = tmp_path / "spool.jsonl"
    spool.write_text("".join(spool_line(step, loss=1 / step, gate=0.5) for step in range(1, 601)))
    assert tracker.ship_spool(run_id, spool) == spool.stat().st_size
    tracker.ship_spool(run_id, spool)
    assert history(tracker, run_id, "loss") == [(step, 1 / step) for step in range(1, 601)]
    point = tracker.client.get_metric_history(run_id, "loss")[0]
    assert point.timestamp == TIME_MS + 1


def test_a_spool_is_shipped_as_far_as_its_lines_are_complete(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("train")
    spool = tmp_path / "spool.jsonl"
    assert tracker.ship_spool(run_id, spool) == 0
    first, second = spool_line(1, loss=0.5), spool_line(2, loss=0.25)
    spool.write_text(first + second[:-5])
    offset = tracker.ship_spool(run_id, spool)
    assert offset == len(first)
    assert history(tracker, run_id, "loss") == [(1, 0.5)]
    spool.write_text(first + second)
    assert tracker.ship_spool(run_id, spool, offset=offset) == len(first + second)
    assert history(tracker, run_id, "loss") == [(1, 0.5), (2, 0.25)]


def test_a_long_spool_is_shipped_a_thousand_lines_at_a_time_and_none_twice(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, path = tracker.start_run("train"), tmp_path / "spool.jsonl"
    steps = [*range(2, 2502), 1]  # out of order as well
    path.write_text("".join(spool_line(step, loss=1 / step, gate=0.5) for step in steps))
    shipped: list[int] = []
    log_batch = tracker.client.log_batch

    def once_away(run_id: str, metrics: list[Metric], tags: list[RunTag]) -> None:
        shipped.append(len(metrics))
        if len(shipped) == 2:
            raise MlflowException("away")
        log_batch(run_id, metrics=metrics, tags=tags)

    monkeypatch.setattr(tracker.client, "log_batch", once_away)
    spool = Spool(tracker, path)
    with pytest.raises(OutageError):
        spool.ship(run_id)
    spool.ship(run_id)
    assert shipped == [2000, 2000, 2000, 1002], "what was taken before the outage is not sent again"
    assert sorted(history(tracker, run_id, "loss")) == [(step, 1 / step) for step in range(1, 2502)]
    assert spool.new_lines() == 2501
    assert spool.new_lines() == 0


def test_an_integer_that_no_database_holds_costs_only_its_line(tracker: Tracker, tmp_path: Path) -> None:
    run_id, path = tracker.start_run("train"), tmp_path / "spool.jsonl"
    path.write_text(spool_line(2**70, loss=0.5) + spool_line(1, loss=0.25) + spool_line(2, loss=10**400) + spool_line(3, loss=2))
    assert tracker.ship_spool(run_id, path) == path.stat().st_size
    assert history(tracker, run_id, "loss") == [(1, 0.25), (3, 2.0)]


def test_a_result_that_is_recorded_again_is_there_once(tracker: Tracker) -> None:
    run_id = tracker.start_run("trial")
    for result in ({"score": 0.5, "auroc": math.nan}, {"score": 0.5, "auroc": math.nan}, {"score": 0.5, "utility": 1.0}):
        tracker.log_metrics(run_id, result, step=6)
    assert history(tracker, run_id, "score") == [(6, 0.5)]
    assert history(tracker, run_id, "utility") == [(6, 1.0)]


def test_a_run_that_a_server_made_twice_is_one(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    create_run = tracker.client.create_run

    def twice(*args: Any, **kwargs: Any) -> Any:
        create_run(*args, **kwargs)
        return create_run(*args, **kwargs)

    monkeypatch.setattr(tracker.client, "create_run", twice)
    run_ids = {tracker.start_run("train", key=key) for key in ("a key", None)}
    assert {run.info.run_id for run in tracker.search("")} == run_ids


def test_a_damaged_spool_line_costs_only_itself(tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_id = tracker.start_run("train")
    spool = tmp_path / "spool.jsonl"
    damaged = '{"step": 2, "time_m' + spool_line(2, loss=0.4)
    odd = ['{"step": 5}\n', "[]\n", '{"step": 1, "time_ms": 1, "metrics": {"loss": "x"}}\n', "\xff\n", "\n"]
    nulls = '{"step": 3, "time_ms": 3, "metrics": {"loss": NaN, "gate": null, "kl": 0.125}}\n'
    spool.write_text(spool_line(1, loss=0.5) + damaged + "".join(odd) + nulls)
    with caplog.at_level(logging.WARNING, "pipelines.tracking"):
        tracker.ship_spool(run_id, spool)
    assert len(caplog.records) == 6
    assert history(tracker, run_id, "loss") == [(1, 0.5)]
    assert history(tracker, run_id, "kl") == [(3, 0.125)]
    assert {"non_finite.loss", "non_finite.gate"} <= set(tracker.client.get_run(run_id).data.tags)


def test_data_sets_are_recorded_by_digest_once(tracker: Tracker) -> None:
    run_id = tracker.start_run("train")
    digest = "0123456789abcdef" * 4
    for _ in range(2):
        tracker.log_dataset(run_id, "request-7", digest, "forget", 20, "jsonl")
    inputs = tracker.client.get_run(run_id).inputs
    assert inputs is not None
    (entry,) = inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest, entry.dataset.source_type) == ("request-7", digest[:36], "jsonl")
    assert json.loads(entry.dataset.source)["sha256"] == digest
    assert json.loads(str(entry.dataset.profile)) == {"num_rows": 20}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "forget")]


@pytest.mark.filterwarnings("ignore:.* deprecated - use:DeprecationWarning")  # matplotlib's import meets a newer pyparsing
def test_artifacts_arrive_under_their_names(tracker: Tracker, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    run_id = tracker.start_run("train")
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "part.txt").write_text("part")
    tracker.log_figure(run_id, figure, "figures/pareto.png")
    tracker.log_json(run_id, {"b": 1, "a": [2]}, "report.json")
    tracker.log_folder(run_id, folder, "files")
    assert artifact(tracker, run_id, "figures/pareto.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(artifact(tracker, run_id, "report.json").read_text()) == {"a": [2], "b": 1}
    assert artifact(tracker, run_id, "files/part.txt").read_text() == "part"


@pytest.mark.parametrize(
    "call",
    [
        lambda tracker: tracker.log_metrics("no-such-run", {"loss": 1.0}),
        lambda tracker: tracker.log_params("no-such-run", {"a": 1}),
        lambda tracker: tracker.end_run("no-such-run"),
        lambda tracker: tracker.log_text("no-such-run", "text", "text.txt"),
        lambda tracker: tracker.log_metrics(tracker.start_run("train"), {"forget@1": 1.0}),
        lambda tracker: tracker.log_text(tracker.start_run("train"), "text", "../../outside.txt"),
    ],
)
def test_what_mlflow_refuses_is_a_tracking_error(tracker: Tracker, call: Callable[[Tracker], None]) -> None:
    with pytest.raises(TrackingError, match=r"MLflow must be able to .*, got .*; check"):
        call(tracker)


def test_a_folder_that_is_missing_is_not_stored_as_nothing(tracker: Tracker, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="must be a folder"):
        tracker.log_folder(tracker.start_run("train"), tmp_path / "missing", "files")
