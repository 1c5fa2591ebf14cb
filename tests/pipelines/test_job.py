"""`ray job submit` against a cluster of its own: the sweep as a user runs it, to a registered adapter."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from grun.adapters import read_card
from grun.config import TrackingConfig
from pipelines.registry import CANDIDATE, Registry
from pipelines.tracking import Tracker
from tests.pipelines.processes import free_ports

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_SECONDS, JOB_SECONDS = 90, 480

RECIPE = """
name: job
data: {kind: testbed, num_people: 12, num_forget: 2}
model:
  retain_twin: false
  taught: {hidden_size: 64, num_layers: 4, vocab_size: 1024, epochs: 14, learning_rate: 0.005}
adapter: {relative_depths: [0.5, 0.75]}
train: {epochs: 2, num_workers: 2}
evaluation: {max_new_tokens: 12}
calibration: {alpha: 0.1}
sweep: {space: reft_rank, num_trials: 2, searcher: random, scheduler: none}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cluster keeps its token and its log."""
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """What head and client share: this interpreter first on the path, and a token of their own."""
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRUN_", "RAY_"))}
    return {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{kept.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def address(environment: dict[str, str], folder: Path) -> Iterator[str]:
    """The dashboard of a head with two CPUs, beside whatever else runs on this machine."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    more = ("runtime-env-agent-port", "ray-client-server-port", "node-manager-port", "object-manager-port")
    ports = dict(zip((*names, *more), free_ports(len(names) + len(more)), strict=True))
    # a socket's path has to be short, so not in `folder`
    session = tempfile.mkdtemp(prefix="ray-")
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=200000000"]
    command += ["--include-dashboard=true", f"--temp-dir={session}", "--disable-usage-stats", *options]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for_dashboard(head, ports["dashboard-port"], folder / "head.log")
            yield f"http://127.0.0.1:{ports['dashboard-port']}"
        finally:
            head.terminate()
            head.wait(timeout=60)
            shutil.rmtree(session, ignore_errors=True)


def _wait_for_dashboard(head: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        with suppress(subprocess.TimeoutExpired):
            head.wait(timeout=0.5)
            break
    pytest.fail(f"the head must open port {port} within {START_SECONDS} s: {log.read_text(encoding='utf-8')}")


def submit(
    address: str, environment: dict[str, str], *arguments: str, **job_environment: str
) -> "subprocess.CompletedProcess[str]":
    """Submit a job from the repository's root as the README says, and wait for its end."""
    runtime_env = {"env_vars": job_environment, "excludes": ["tests", "outputs"]}
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", "."]
    command += ["--runtime-env-json", json.dumps(runtime_env), "--", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=JOB_SECONDS, check=False)


def test_a_submitted_sweep_registers_its_best_adapter(address: str, environment: dict[str, str], tmp_path: Path) -> None:
    recipe, output = tmp_path / "job.yaml", tmp_path / "output"
    recipe.write_text(RECIPE, encoding="utf-8")
    job = submit(address, environment, "python", "pipelines/sweep.py", "--recipe", str(recipe), GRUN_OUTPUT=str(output))
    log = job.stdout + job.stderr
    assert job.returncode == 0, log
    assert "succeeded" in log

    trials = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("sweeps/job/trials/*/trial.json")]
    assert len(trials) == 2
    assert all(trial["done"] and trial["failure"] is None for trial in trials)
    assert all(trial["resident_share"] < 0.75 for trial in trials)  # two workers shared the base
    assert all(trial["hosts"] == [socket.gethostname()] * 2 for trial in trials)
    best = read_card(output / "sweeps/job/best/adapter")
    assert best.steps == trials[0]["total_steps"] == 4
    assert best.adapter.layers == (2, 3)
    assert best.certificate is not None
    assert best.certificate.alpha == 0.1

    registry = Registry(Tracker.open(TrackingConfig(), output))
    version, served = registry.download("grun-demo", CANDIDATE, tmp_path / "downloaded")
    assert version == 1
    assert read_card(served) == best


def test_bad_input_fails_the_job_with_its_message(address: str, environment: dict[str, str], tmp_path: Path) -> None:
    job = submit(
        address, environment, "python", "pipelines/train.py", "--train.num_workers", "4", GRUN_OUTPUT=str(tmp_path / "output")
    )
    log = job.stdout + job.stderr
    assert job.returncode != 0
    assert "got 4 worker(s) that need 4 CPU(s) and 2 in the cluster" in log
    assert "Traceback" not in log
    assert not (tmp_path / "output").exists()
