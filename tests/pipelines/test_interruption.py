"""A command that is interrupted, as by Ctrl-C, and the same command again: real Ray, a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grun.config import TrackingConfig
from pipelines.tracking import Tracker

pytestmark = pytest.mark.slow  # two clusters start

ROOT = Path(__file__).parents[2]

RECIPE = """
name: interrupted
data: {kind: testbed, num_people: 12, num_forget: 2}
model:
  retain_twin: false
  taught: {hidden_size: 64, num_layers: 4, vocab_size: 1024, epochs: 14, learning_rate: 0.005}
adapter: {relative_depths: [0.5, 0.75]}
train: {epochs: 20, num_workers: 2, report_every: 10}
evaluation: {max_new_tokens: 12}
calibration: {alpha: 0.1}
sweep: {space: reft_rank, num_trials: 3, searcher: random, scheduler: none}
cluster: {num_cpus: 2}
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return [sys.executable, "pipelines/sweep.py", "--recipe", str(recipe), "--output", str(tmp_path / "outputs")]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in tmp_path.glob("outputs/sweeps/interrupted/trials/*/trial.json")]


def test_an_interrupted_training_goes_on_from_its_last_checkpoint(command: list[str], tmp_path: Path) -> None:
    command = [*command[:1], "pipelines/train.py", *command[2:], "--train.epochs", "600", "--train.report_every", "20"]
    with start(command) as first:
        assert first.stderr is not None
        said = []
        for line in first.stderr:
            said.append(line)
            if line.startswith("training: "):  # some tenth of it is done
                first.send_signal(signal.SIGINT)
                break
        said += first.stderr.readlines()
    assert first.returncode == 130, "".join(said)
    assert said[-1] == "interrupted; the same command continues where this one stopped\n"
    tracker = Tracker.open(TrackingConfig(), tmp_path / "outputs")
    assert [run.info.status for run in tracker.search("tags.kind = 'train'")] == ["KILLED"]
    with start(command) as second:
        _out, err = second.communicate(timeout=400)
    assert second.returncode == 0, err
    [continuing] = [line for line in err.splitlines() if line.startswith("continuing from step ")]
    assert int(continuing.split()[3]) >= 20
    assert [run.info.status for run in tracker.search("tags.kind = 'train'")] == ["FINISHED"]


def test_an_interrupted_sweep_goes_on_with_the_same_command(command: list[str], tmp_path: Path) -> None:
    with start(command) as first:
        assert first.stderr is not None
        said = []
        for line in first.stderr:
            said.append(line)
            if line.startswith("trial "):  # the first of three has ended
                first.send_signal(signal.SIGINT)
                break
        said += first.stderr.readlines()
    assert first.returncode == 130, "".join(said)
    assert said[-1] == "interrupted; the same command continues where this one stopped\n"
    before = records(tmp_path)
    [finished] = [record for record in before if record["done"]]
    spool = tmp_path / "outputs/sweeps/interrupted/trials" / finished["trial_id"] / "metrics.jsonl"
    untouched = spool.stat().st_mtime_ns

    with start(command) as second:
        out, err = second.communicate(timeout=400)
    assert second.returncode == 0, err
    assert "trials" in out
    after = records(tmp_path)
    assert len(after) == 3
    assert all(record["done"] and record["failure"] is None for record in after)
    assert {record["trial_id"] for record in before} <= {record["trial_id"] for record in after}
    assert spool.stat().st_mtime_ns == untouched
    tracker = Tracker.open(TrackingConfig(), tmp_path / "outputs")
    [parent] = tracker.search("tags.kind = 'sweep'")
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in tracker.search("tags.kind = 'trial'")} == {"FINISHED"}
