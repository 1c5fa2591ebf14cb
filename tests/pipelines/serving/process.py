"""The server as a user starts it: a process of its own, on a port that nobody uses."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from grun.config import Recipe
from pipelines.benchmarks.servers import free_port
from pipelines.serving.limits import API_KEY

ROOT = Path(__file__).parents[3]
START_SECONDS = 600


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str
    process: "subprocess.Popen[str]"
    log: Path
    ray_logs: Path
    """Where Ray and its workers write what they log."""

    def health(self) -> dict[str, object]:
        answer: dict[str, object] = httpx.get(f"{self.url}/healthz").json()
        return answer

    def wait_for(self, **expected: object) -> dict[str, object]:
        """Poll its health until fields have these values."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                health = self.health()
            except (httpx.HTTPError, ValueError):  # not there yet, or no application of ours
                health = {}
            if all(health.get(name) == value for name, value in expected.items()):
                return health
            time.sleep(0.1)
        raise AssertionError(f"not {expected} within {START_SECONDS} s: {health}\n{self.log.read_text()}")


def _take_interrupts() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(
    recipe: Recipe, folder: Path, *, key: str | None = None, ended_by: signal.Signals = signal.SIGINT
) -> Iterator[Running]:
    """Start it, and end it as Ctrl-C and pods do; it has to end by itself, with status 0."""
    port = free_port()
    served = recipe.replace({"serving": {"port": port}})
    file, log = folder / "served.yaml", folder / f"server-{port}.log"
    file.write_text(yaml.safe_dump(served.model_dump(mode="json")), encoding="utf-8")
    session = tempfile.mkdtemp(prefix="ray-")  # a socket's path has to be short, so not in `folder`
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRUN_", "RAY_ADDRESS"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": session, **({API_KEY: key} if key else {})}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "pipelines/serve.py", "--recipe", str(file)],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=out,
            text=True,
            preexec_fn=_take_interrupts,  # noqa: PLW1509 - it takes no lock
        )
        server = Running(f"http://127.0.0.1:{port}", process, log, Path(session))
        try:
            server.wait_for(live=True)
            yield server
            process.send_signal(ended_by)
            assert process.wait(START_SECONDS) == 0, log.read_text()
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
