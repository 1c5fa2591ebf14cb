"""One command at a time in a run's folder, also where the file system has no locks; of processes that are killed, see `tests/faults`."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from grun.errors import ConfigError
from pipelines import holding as holding_module
from pipelines.holding import holding
from pipelines.owner import owner


def refuse(*_arguments: object) -> NoReturn:
    raise OSError(errno.ENOLCK, "No locks available")


def test_who_holds_a_folder_may_hold_it_within(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with holding(folder):
        with holding(folder):
            pass
        assert json.loads((folder / "owner.json").read_text())["owner"] == f"{owner()}:{os.getpid()}"
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]
    with holding(folder):
        pass


def test_nothing_is_left_of_a_folder_that_stayed_empty(tmp_path: Path) -> None:
    with holding(tmp_path / "output" / "runs" / "one"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_taken_away_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened the file before its holder ended must not believe that it holds the new one."""
    flock = fcntl.flock
    first = holding(tmp_path)
    first.__enter__()

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.__exit__(None, None, None)
        flock(descriptor, operation)

    monkeypatch.setattr(holding_module, "_held", set())
    monkeypatch.setattr(fcntl, "flock", late)
    with holding(tmp_path):
        assert (tmp_path / ".lock").exists()
        monkeypatch.setattr(holding_module, "_held", set())
        with pytest.raises(ConfigError, match="one command at a time"):
            holding(tmp_path).__enter__()


def test_a_holder_that_has_not_said_who_it_is_is_a_holder(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="held by another process; wait for its end"):
            holding(tmp_path).__enter__()


def test_without_locks_a_process_that_is_no_more_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "owner.json").write_text(json.dumps({"owner": f"{owner()}:{ended.pid}", "since": "2026-11-28"}))
    with holding(tmp_path):
        assert json.loads((tmp_path / "owner.json").read_text())["owner"] == f"{owner()}:{os.getpid()}"
    assert not (tmp_path / "owner.json").exists()


@pytest.mark.parametrize("who", [f"{owner()}:{os.getppid()}", "somebody@elsewhere:1"])
def test_without_locks_others_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "owner.json").write_text(json.dumps({"owner": who, "since": "2026-11-28"}))
    with pytest.raises(
        ConfigError, match=f"held by {who}, since 2026-11-28.* or delete .*owner.json.* if that process is no more"
    ):
        holding(tmp_path).__enter__()
    assert (tmp_path / "owner.json").exists()
