"""A ledger of its own for each test, and the verb `request` on it."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from pipelines import request
from pipelines.mlflow_store import Store
from pipelines.running import run_command
from tests.pipelines.processes import Ended
from tests.pipelines.requests.desk import SECRET, Verb, records, write_records


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.upper().startswith("GRUN_") or variable == "FORCE_COLOR":
            monkeypatch.delenv(variable)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, without an experiment, which has a place: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    Store(f"sqlite:///{path}")
    return path


@pytest.fixture
def output(tmp_path: Path, empty_store: Path) -> Path:
    """An output folder, with a store of its own in it."""
    (tmp_path / "output" / "mlflow").mkdir(parents=True)
    shutil.copyfile(empty_store, tmp_path / "output" / "mlflow" / "mlflow.db")
    return tmp_path / "output"


@pytest.fixture
def run(output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Run a subcommand as its own process would; no text of a request may ever be printed."""
    monkeypatch.setattr("signal.signal", lambda *_: None)  # `run_command` owns its process, and here it does not

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(partial(request.main, [*map(str, arguments), "--output", str(output)]))
        ended = Ended(stop.value.code, *capsys.readouterr())
        assert SECRET not in ended.out + ended.err
        return ended

    return run


@pytest.fixture
def add(run: Verb, tmp_path: Path) -> Verb:
    """Add a request with two records of its own."""

    def add(name: str, *more: object) -> Ended:
        file = write_records(tmp_path / f"{name}.jsonl", records(name))
        return run("add", "--request.id", name, "--request.reason", "they asked", "--forget", file, *more)

    return add
