"""Checkpoints: a resumed run is the same run, and anything but a whole checkpoint of this very run is refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grun.data.records import QARecord
from grun.errors import TrainingError
from grun.lm import FrozenLM, FullPass
from grun.training import Progress, StopTraining, Task, TorchEngine, fit, load_checkpoint, save_checkpoint

MakeTask = Callable[..., Task]
FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")


def _fit(lm: FrozenLM, task: Task, *, start: int = 0, stop: int | None = None) -> None:
    def stop_at(progress: Progress) -> None:
        if progress.step == stop:
            raise StopTraining

    fit(TorchEngine(FullPass(lm)), task.adapter, task.objective, task.sampler, task.optimizer, start=start, callbacks=[stop_at])


def _state(task: Task) -> Mapping[str, Tensor]:
    return {name: value.clone() for name, value in task.adapter.state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_lm: FrozenLM, make_task: MakeTask) -> Path:
    """A checkpoint of the default task after two steps."""
    task = make_task()
    _fit(tiny_lm, task, stop=2)
    save_checkpoint(tmp_path, task.adapter, task.optimizer, step=2, trajectory=task.trajectory)
    return tmp_path


def test_a_resumed_run_ends_bit_identical(tmp_path: Path, tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    """Stops inside an epoch, inside the gates' warm-up; partners are drawn anew in every epoch and the rate is falling."""

    def new() -> Task:
        objective = {"forget": {"kind": "npo"}, "retain": {"kind": "kl"}, "gate_warmup_steps": 5}
        return make_task(objective, warmup_steps=2, weight_decay=0.01, learning_rate=0.01)

    straight, first, second = new(), new(), new()
    _fit(tiny_lm, straight)
    _fit(tiny_lm, first, stop=3)
    save_checkpoint(tmp_path, first.adapter, first.optimizer, step=3, trajectory=first.trajectory)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    start = load_checkpoint(tmp_path, second.adapter, second.optimizer, trajectory=second.trajectory)
    assert start == 3
    _fit(tiny_lm, second, start=start)
    assert straight.optimizer.total_steps == 8
    for name, value in straight.adapter.state_dict().items():
        assert torch.equal(value, second.adapter.state_dict()[name]), name
    moments, resumed = straight.optimizer.state(), second.optimizer.state()
    assert moments.keys() == resumed.keys()
    assert all(torch.equal(moments[key], resumed[key]) for key in moments)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "changed"])
def test_a_damaged_checkpoint_is_refused_and_nothing_is_loaded(
    checkpoint: Path, make_task: MakeTask, file: str, damage: str
) -> None:
    path = checkpoint / file
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(content[:-7])
        case "changed":
            path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    task = make_task()
    before = _state(task)
    with pytest.raises(TrainingError, match=r"a checkpoint must be .* delete it"):
        load_checkpoint(checkpoint, task.adapter, task.optimizer, trajectory=task.trajectory)
    assert all(torch.equal(before[name], value) for name, value in task.adapter.state_dict().items())
    assert task.optimizer.state() == {}


def test_a_missing_folder_is_refused(tmp_path: Path, make_task: MakeTask) -> None:
    task = make_task()
    with pytest.raises(TrainingError, match="a checkpoint must be complete"):
        load_checkpoint(tmp_path / "nowhere", task.adapter, task.optimizer, trajectory=task.trajectory)


@pytest.mark.parametrize("state", ["[]", '{"step": "many"}', '{"step": 1}'])
def test_a_state_of_another_shape_is_refused(checkpoint: Path, make_task: MakeTask, state: str) -> None:
    (checkpoint / "state.json").write_text(state, encoding="utf-8")
    task = make_task()
    with pytest.raises(TrainingError, match="a checkpoint must be complete"):
        load_checkpoint(checkpoint, task.adapter, task.optimizer, trajectory=task.trajectory)


def test_tensors_of_another_shape_are_refused(checkpoint: Path, make_task: MakeTask) -> None:
    wider = make_task(adapter={"rank": 3})
    trajectory = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["trajectory"]
    with pytest.raises(TrainingError, match="a checkpoint must be complete"):
        load_checkpoint(checkpoint, wider.adapter, wider.optimizer, trajectory=trajectory)


def test_a_checkpoint_of_another_run_is_refused(checkpoint: Path, make_task: MakeTask) -> None:
    other = make_task(seed=1)
    before = _state(other)
    with pytest.raises(TrainingError, match="a run continues only with the settings and data it was started with"):
        load_checkpoint(checkpoint, other.adapter, other.optimizer, trajectory=other.trajectory)
    assert all(torch.equal(before[name], value) for name, value in other.adapter.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"learning_rate": 2e-3},
        {"epochs": 5},
        {"pairing": "fixed"},
        {"adapter": {"rank": 3}},
        {"objective": {"gate_weight": 9.0}},
        {"forget": (QARecord("Where does Ilva live?", "In Selk."),)},
    ],
    ids=str,
)
def test_what_decides_the_trajectory_changes_its_digest(make_task: MakeTask, change: dict[str, Any]) -> None:
    assert make_task(**change).trajectory != make_task().trajectory


@pytest.mark.parametrize(
    "change",
    [
        {"num_workers": 4},
        {"engine": "torch"},
        {"report_every": 3},
        {"probe_rows": 2},
        {"adapter": {"gate_threshold": None}},
    ],
    ids=str,
)
def test_what_does_not_decide_the_trajectory_leaves_its_digest(make_task: MakeTask, change: dict[str, Any]) -> None:
    assert make_task(**change).trajectory == make_task().trajectory
