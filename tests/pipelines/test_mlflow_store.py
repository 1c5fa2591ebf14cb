"""Opening a store: what is created, what is refused at once, and what is said of it."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from grun.config import TrackingConfig
from grun.errors import OutageError, TrackingError
from pipelines.benchmarks.servers import free_port
from pipelines.mlflow_store import Store
from pipelines.tracking import Tracker

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def test_the_default_store_lies_in_the_output_folder_and_nothing_in_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    tracker = Tracker.open(TrackingConfig(), Path("../the output"))
    with tracker.run("train") as run_id:
        tracker.log_text(run_id, "<p>report</p>", "report.html")
    assert (tmp_path / "the output" / "mlflow" / "mlflow.db").is_file()
    reports = list((tmp_path / "the output" / "mlflow" / "artifacts").rglob("report.html"))
    assert [report.read_text() for report in reports] == ["<p>report</p>"]
    assert list(cwd.iterdir()) == []


def test_importing_and_opening_is_silent_and_switches_pickle_and_telemetry_off(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\n"
        "import pipelines.tracking\n"
        "assert 'mlflow' not in sys.modules\n"
        "from grun.config import TrackingConfig\n"
        "pipelines.tracking.Tracker.open(TrackingConfig(), pathlib.Path(sys.argv[1]))\n"
        "import mlflow.telemetry.client as telemetry, mlflow.environment_variables as settings\n"
        "assert telemetry.get_telemetry_client() is None\n"
        "assert settings.MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is False\n"
    )
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name and name != "DO_NOT_TRACK"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_processes_may_create_one_store_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from grun.config import TrackingConfig\n"
        "from pipelines.tracking import Tracker\n"
        "print(Tracker.open(TrackingConfig(), pathlib.Path(sys.argv[1])).experiment_id)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outcomes = [(*process.communicate(), process.returncode) for process in processes]
    assert outcomes == [("1\n", "", 0)] * 3


def test_an_unreachable_server_is_one_clear_message(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TrackingError, match=r"open the tracking store.*Connection refused.*check that `tracking\.uri`"):
        Tracker(uri, "unreachable", tmp_path)


def test_opening_asks_a_server_that_fails_only_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            pass

    asked: list[str] = []
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(TrackingError, match="503"):
            Tracker(f"http://127.0.0.1:{server.server_port}", "failing", tmp_path)
        server.shutdown()
        thread.join()
    assert len(asked) == 2


def test_opening_leaves_the_patience_of_later_calls_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    with pytest.raises(TrackingError):
        Tracker(f"http://127.0.0.1:{free_port()}", "unreachable", tmp_path)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(TrackingError) as caught:
        Tracker(f"http://me:hunter2@127.0.0.1:{free_port()}", "unreachable", tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "databricks"])
def test_a_store_of_another_kind_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"must be an http\(s\) server or a database.*sqlite:////"):
        Tracker(uri, "grun", tmp_path)


def test_a_database_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="unable to open database file"):
        Tracker(f"sqlite:///{tmp_path / 'missing' / 'mlflow.db'}", "grun", tmp_path)
    (tmp_path / "notes.db").write_text("this is a note, not a database, and it goes on for a while\n" * 40)
    with pytest.raises(TrackingError, match="not a database"):
        Tracker(f"sqlite:///{tmp_path / 'notes.db'}", "grun", tmp_path)


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(TrackingError, match="output folder must be writable"):
        Tracker.open(TrackingConfig(), tmp_path / "out")


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_an_output_folder_stays_where_it_was_made(how: str, tmp_path: Path) -> None:
    """A copy would read and write the artifacts of the original."""
    made, now = tmp_path / "made here", tmp_path / "now"
    run_id = Tracker.open(TrackingConfig(), made).start_run("before")
    Tracker.open(TrackingConfig(), made).log_json(run_id, {}, "kept.json")
    if how == "moved":
        made.rename(now)
    else:
        shutil.copytree(made, now)
    with pytest.raises(TrackingError, match=rf"got '{now}' with an MLflow store that was made in '{made}'; move it back"):
        Tracker.open(TrackingConfig(), now)
    if how == "moved":
        made.symlink_to(now)
        for way in (made, now):
            tracker = Tracker.open(TrackingConfig(), way)
            assert [file.path for file in tracker.client.list_artifacts(run_id)] == ["kept.json"]


def test_what_a_database_says_is_told_without_the_statement(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    full = sqlite3.OperationalError("database or disk is full")
    with pytest.raises(OutageError) as caught, store.calling("record metrics"):
        raise OperationalError("INSERT INTO metrics VALUES (?)", ("a value",), full)
    assert str(caught.value) == (
        f"MLflow must be able to record metrics, got OperationalError: (sqlite3.OperationalError) database or disk is full (store "
        f"'{store.uri}'); free space on its disk; what is done is kept in the output folder, and the same command goes on from there and "
        "records it"
    )
