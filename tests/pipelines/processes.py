"""What tests with processes of their own share: how a command ended, free ports, and workers of one process group."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "free_ports", "run_workers"]

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: object
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line of an error that the user can mend: the last, and nothing is printed as a result."""
        assert (self.status, self.out) == (2, ""), self.err
        assert "Traceback" not in self.err
        [line] = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.err.strip().endswith(line)
        return line


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def run_workers(script: Path, folder: Path, *, world_size: int) -> None:
    """Run a script in several processes that find each other through `folder`; all of them have to end well."""
    shared = {"WORLD_SIZE": str(world_size), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        said = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for worker, lines in zip(workers, said, strict=True):
        assert worker.returncode == 0, lines[-3000:]
