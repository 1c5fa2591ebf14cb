"""Checkpoints: adapter, optimizer moments and step; a few kilobytes, independent of the number of workers.

Batch order, retain partners and learning rate are functions of seed and step, so the step is all there is to save
of them. A checkpoint is a folder that appears whole or not at all, and every file is checked against its digest.
"""

import hashlib
import json
import shutil
import uuid
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grun.config import Config
from grun.errors import TrainingError
from grun.interventions import Adapter
from grun.training.optimizer import AdapterOptimizer

__all__ = ["Checkpoints", "load_checkpoint", "save_checkpoint"]

_KEPT = 2

_STATE, _ADAPTER, _OPTIMIZER = "state.json", "adapter.safetensors", "optimizer.safetensors"


class _State(Config):
    step: int
    """Optimizer steps that are done."""
    trajectory: str
    """Digest of everything that decides the trajectory; a checkpoint of another run is refused."""
    files: dict[str, str]
    """SHA-256 of each tensor file."""


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_checkpoint(folder: Path, adapter: Adapter, optimizer: AdapterOptimizer, *, step: int, trajectory: str) -> None:
    """Write a checkpoint into an existing empty folder, its state file last."""
    save_file({name: value.contiguous() for name, value in adapter.state_dict().items()}, folder / _ADAPTER)
    save_file(optimizer.state(), folder / _OPTIMIZER)
    files = {name: _sha256(folder / name) for name in (_ADAPTER, _OPTIMIZER)}
    state = _State(step=step, trajectory=trajectory, files=files)
    (folder / _STATE).write_text(state.model_dump_json(indent=2), encoding="utf-8")


class Checkpoints:
    """The last two checkpoints of a run, in a folder that outlives its workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, adapter: Adapter, optimizer: AdapterOptimizer, *, step: int, trajectory: str) -> None:
        """Write a checkpoint, whole or not at all, and remove those before the previous one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear_partial()
        partial = self.folder / f".partial-{uuid.uuid4().hex}"
        partial.mkdir()
        save_checkpoint(partial, adapter, optimizer, step=step, trajectory=trajectory)
        target = self.folder / f"step{step:08d}"
        if target.is_dir():  # a run that was started again has come to the same step
            shutil.rmtree(target)
        partial.replace(target)
        for old in self._all()[:-_KEPT]:
            shutil.rmtree(old)

    def load_latest(self, adapter: Adapter, optimizer: AdapterOptimizer, *, trajectory: str) -> int:
        """Restore the latest checkpoint in place and return the number of steps that are done: 0 where there is none.

        Raises:
            TrainingError: as :func:`load_checkpoint`.
        """
        found = self._all()
        return load_checkpoint(found[-1], adapter, optimizer, trajectory=trajectory) if found else 0

    def latest_step(self) -> int:
        """Steps that the latest checkpoint has done: 0 where there is none."""
        found = self._all()
        return int(found[-1].name.removeprefix("step")) if found else 0

    def _clear_partial(self) -> None:
        """Remove what a worker that was killed while it wrote has left; one worker writes at a time."""
        for old in self.folder.glob(".partial-*"):
            shutil.rmtree(old, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step*"))


def load_checkpoint(folder: Path, adapter: Adapter, optimizer: AdapterOptimizer, *, trajectory: str) -> int:
    """Restore adapter and optimizer in place and return the number of steps that are done.

    Raises:
        TrainingError: a file is missing or damaged, or the checkpoint is another run's.
    """
    try:
        state = _State.model_validate(json.loads((folder / _STATE).read_text(encoding="utf-8")))
        damaged = [name for name, digest in state.files.items() if _sha256(folder / name) != digest]
        if damaged:
            raise TrainingError(
                f"a checkpoint must be as it was written, got damaged files {damaged} in {str(folder)!r}; delete it"
            )
        if state.trajectory != trajectory:
            raise TrainingError(
                f"a run continues only with the settings and data it was started with, got a checkpoint of another run in {str(folder)!r}; "
                "use another `name`, or delete the old run's folder"
            )
        adapter.load_state_dict(load_file(folder / _ADAPTER))
        optimizer.load_state(load_file(folder / _OPTIMIZER))
    except (OSError, ValueError, ValidationError, SafetensorError, RuntimeError) as error:
        raise TrainingError(f"a checkpoint must be complete, got {str(folder)!r}: {error}; delete it to start again") from None
    return state.step
