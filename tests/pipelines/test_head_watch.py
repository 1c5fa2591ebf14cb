"""When the head of a cluster counts as dead; of real ones, see `tests/faults`."""

import socket
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import ray

from pipelines import head_watch


def test_a_given_head_may_be_away_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("pipelines.head_watch.time.monotonic", lambda: now)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        reason = head_watch._given_head("head:6379")
        assert reason() is None
    now += 19
    assert reason() is None
    now += 2
    assert reason() == "no answer at RAY_ADDRESS='head:6379' for 21 s (Connection refused)"


def test_a_head_of_our_own_is_gone_with_any_of_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(psutil.Process, "name", lambda _process: "gcs_server")
        reason = head_watch._own_head()
        assert reason() is None
        process.kill()
        process.wait()
        assert reason() == f"the end of its process `gcs_server` (pid {process.pid})"


def test_a_process_that_is_no_command_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "_own_head", lambda: pytest.fail("it was looked at"))
    monkeypatch.setattr(head_watch, "is_installed", lambda: False)
    with head_watch.watching_head(None):
        pass
