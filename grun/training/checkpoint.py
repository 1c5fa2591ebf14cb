"""Checkpoints: adapter, optimizer moments and step; a few kilobytes, independent of the number of workers.

Batch order, retain partners and learning rate are functions of seed and step, so the step is all there is to save
of them. A checkpoint is a folder that appears whole or not at all, and every file is checked against its digest. Two are kept:
a run whose last one was damaged goes on from the one before, and ends where it would have.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from grun.config import Config
from grun.errors import TrainingError
from grun.interventions import Adapter
from grun.reading import MalformedError, parse_json, read_text, reason_of
from grun.training.optimizer import AdapterOptimizer
from grun.writing import telling, whole_folder

__all__ = ["Checkpoints", "Found", "load_checkpoint", "save_checkpoint"]

_KEPT = 2

_STATE, _ADAPTER, _OPTIMIZER = "state.json", "adapter.safetensors", "optimizer.safetensors"

_MAX_STATE = 2**16
"""Bytes of `state.json`."""


class _State(Config):
    step: int
    """Optimizer steps that are done."""
    trajectory: str
    """Digest of everything that decides the trajectory; a checkpoint of another run is refused."""
    files: dict[str, str]
    """SHA-256 of each tensor file."""


@dataclass(frozen=True)
class Found:
    """Where a run goes on."""

    folder: Path | None
    """The checkpoint; None where it begins."""
    damaged: tuple[Path, ...] = ()
    """Later ones that are not as they were written; they are gone now."""

    @property
    def step(self) -> int:
        """Steps that are done."""
        return 0 if self.folder is None else int(self.folder.name.removeprefix("step"))

    @property
    def note(self) -> str | None:
        """What there is to say; None where all is as it should be."""
        if not self.damaged:
            return None
        names = ", ".join(folder.name for folder in self.damaged)
        goes_on = f"goes on from the one before, step {self.step}" if self.step else "begins anew, as no other is whole"
        return f"checkpoint {names} in {str(self.damaged[0].parent)!r} was damaged and is deleted; training {goes_on}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_checkpoint(folder: Path, adapter: Adapter, optimizer: AdapterOptimizer, *, step: int, trajectory: str) -> None:
    """Write a checkpoint into an existing empty folder, its state file last."""
    (folder / _ADAPTER).write_bytes(save({name: value.contiguous() for name, value in adapter.state_dict().items()}))
    (folder / _OPTIMIZER).write_bytes(save(optimizer.state()))
    files = {name: _sha256(folder / name) for name in (_ADAPTER, _OPTIMIZER)}
    state = _State(step=step, trajectory=trajectory, files=files)
    (folder / _STATE).write_text(state.model_dump_json(indent=2), encoding="utf-8")


class Checkpoints:
    """The last two checkpoints of a run, in a folder that outlives its workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, adapter: Adapter, optimizer: AdapterOptimizer, *, step: int, trajectory: str) -> None:
        """Write a checkpoint, whole or not at all, and remove those before the previous one.

        Raises:
            DiskError: there is no room for it, or the like; those before it stay.
        """
        target = self.folder / f"step{step:08d}"
        with telling(self.folder):
            for partial in self.folder.glob(".step*.partial-*"):  # of a writer that died; a run has one at a time
                shutil.rmtree(partial)
        with whole_folder(target) as partial:
            save_checkpoint(partial, adapter, optimizer, step=step, trajectory=trajectory)
            if target.is_dir():  # a run that was started again has come to the same step
                shutil.rmtree(target)
        with telling(self.folder):
            for old in self._all()[:-_KEPT]:
                shutil.rmtree(old)

    def find(self, trajectory: str | None = None, *, at_most: int | None = None) -> Found:
        """The latest checkpoint that is whole; damaged ones after it are deleted. For one process of a run at a time.

        Args:
            trajectory: of the run; None where it is not known yet, and then those of other runs are not told apart.
            at_most: do not go on from a later step where there is an earlier checkpoint.

        Raises:
            TrainingError: there are whole ones, and all of them are another run's.
        """
        damaged: list[Path] = []
        foreign: TrainingError | None = None
        whole: list[Path] = []
        for folder in reversed(self._all()):
            try:
                _check(folder, _read_state(folder), trajectory)
                whole.append(folder)
            except _ForeignError as error:
                foreign = foreign or error
                damaged.append(folder)
            except TrainingError:
                damaged.append(folder)
        if not whole and foreign is not None:
            raise foreign
        early = [folder for folder in whole if at_most is None or Found(folder).step <= at_most]
        chosen = next(iter(early or whole), None)
        for folder in damaged:
            shutil.rmtree(folder)
        return Found(chosen, tuple(reversed(damaged)))

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step*"))


class _ForeignError(TrainingError):
    """A checkpoint is another run's."""


def _read_state(folder: Path) -> _State:
    try:
        return _State.model_validate(parse_json(read_text(folder / _STATE, limit=_MAX_STATE)))
    except (OSError, MalformedError, ValidationError) as error:
        raise TrainingError(
            f"a checkpoint must be complete, got {str(folder)!r}: {reason_of(error)}; delete it to start again"
        ) from None


def _check(folder: Path, state: _State, trajectory: str | None) -> None:
    damaged: Sequence[str]
    try:
        damaged = [name for name in (_ADAPTER, _OPTIMIZER) if _sha256(folder / name) != state.files.get(name)]
    except OSError as error:
        raise TrainingError(
            f"a checkpoint must be complete, got {str(folder)!r}: {reason_of(error)}; delete it to start again"
        ) from None
    if folder.name.startswith("step") and folder.name != f"step{state.step:08d}":
        damaged = [*damaged, _STATE]
    if damaged:
        raise TrainingError(f"a checkpoint must be as it was written, got damaged files {damaged} in {str(folder)!r}; delete it")
    if trajectory is not None and state.trajectory != trajectory:
        raise _ForeignError(
            f"a run continues only with the settings and data it was started with, got a checkpoint of another run in {str(folder)!r}; "
            "use another `name`, or delete the old run's folder"
        )


def load_checkpoint(folder: Path, adapter: Adapter, optimizer: AdapterOptimizer, *, trajectory: str) -> int:
    """Restore adapter and optimizer in place and return the number of steps that are done.

    Raises:
        TrainingError: a file is missing or damaged, or the checkpoint is another run's.
    """
    state = _read_state(folder)
    _check(folder, state, trajectory)
    try:
        adapter.load_state_dict(load_file(folder / _ADAPTER))
        optimizer.load_state(load_file(folder / _OPTIMIZER))
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise TrainingError(f"a checkpoint must be complete, got {str(folder)!r}: {error}; delete it to start again") from None
    return state.step
