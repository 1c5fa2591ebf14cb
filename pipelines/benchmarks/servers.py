"""Servers that benchmarks start beside themselves: free ports, waiting until something answers, and a real MLflow server."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import httpx

from grun.errors import ClusterError

__all__ = ["MLflowServer", "free_port", "quiet_environment", "wait_until_it_answers"]

_START_SECONDS = 180.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quiet_environment() -> dict[str, str]:
    """The environment of a server that tells nobody, and finds its own programs beside the interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Return once a server answers with 200.

    Raises:
        ClusterError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise ClusterError(
        f"a server of the benchmark must answer within {_START_SECONDS:g} s, got nothing at {url}; see the logs in the folder of its work"
    )


class MLflowServer:
    """A real MLflow server of one worker, with its database `mlflow.db` and its artifacts in a folder, and its log beside that.

    Args:
        folder: made where it is missing; a server that is started again finds what the one before has left.
        within: a command that runs the server's, as `unshare` does.
    """

    def __init__(self, folder: Path, within: Sequence[str] = ()) -> None:
        self.folder = folder
        self.within = within
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process."""
        return None if self.process is None else self.process.pid

    @property
    def is_up(self) -> bool:
        """Whether it was started, and not ended since."""
        return self.process is not None

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            ClusterError: it does not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            *self.within,
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts"),
        ]
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=quiet_environment())
        wait_until_it_answers(f"{self.url}/health", self.process)

    def end(self) -> None:
        """Kill it with all its processes."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Have it for the time of the context."""
        try:
            self.start()
            yield self
        finally:
            self.end()
