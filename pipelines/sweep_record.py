"""What a trial of a sweep leaves in its folder about itself: `trial.json`."""

from pathlib import Path
from typing import Any

from pydantic import Field

from grun.config import Config
from grun.errors import DiskError, TrainingError
from grun.reading import read_text, reason_of
from grun.writing import seal, unseal, write_text
from pipelines.last_word import read_error

__all__ = ["TrialRecord", "mend_trials", "read_trials", "refused_by_disk"]

_TRIAL_FILE, _COPY = "trial.json", ".trial.json.copy"
"""How a trial ended cannot be computed from anything else, so it is written twice."""

_MAX_RECORD = 2**20
"""Bytes."""


class TrialRecord(Config):
    """What a trial leaves in its folder as `trial.json`."""

    trial_id: str
    """Its number, in five digits: the name of its folder."""
    number: int = 0
    """In the order in which points were suggested, from 1; 0 in sweeps from before there were numbers."""
    started: float = 0.0
    """When it started first, in seconds since the epoch; 0 where it has not. No clock is asked which trial came first."""
    point: dict[str, Any]
    """The point of the space, by dotted path."""
    done: bool = False
    """Whether it has ended, well or badly."""
    failure: str | None = None
    """What was wrong with the point, where it could not be trained."""
    steps: int = 0
    """Optimizer steps that were done."""
    total_steps: int = 0
    """Optimizer steps of a full run."""
    stopped_early: bool = False
    """Whether ASHA ended it."""
    resident_share: float = 1.0
    """Largest share of the base's parameters that a worker held between steps."""
    hosts: tuple[str, ...] = ()
    """Names of the hosts that its workers ended on, by rank."""
    thresholds: tuple[float, ...] = ()
    """Gate thresholds that it was scored at: those of the space, raised where calibration asks for it."""
    flags: dict[str, str] = Field(default_factory=dict)
    """What is wrong with its adapter although it ran to the end; of its gates at the trial's best threshold."""
    result: dict[str, float] = Field(default_factory=dict)
    """The objectives at the trial's best threshold."""

    def write(self, folder: Path) -> None:
        """Write the record and a copy of it, each whole or not at all; the record itself last."""
        for name in (_COPY, _TRIAL_FILE):
            write_text(folder / name, seal(self.model_dump(mode="json")))

    @classmethod
    def read(cls, folder: Path) -> "TrialRecord":
        """Read the record of a trial's folder, or its copy where it is damaged.

        Raises:
            TrainingError: both are.
        """
        reasons = []
        for name in (_TRIAL_FILE, _COPY):
            try:
                return cls.model_validate(unseal(read_text(folder / name, limit=_MAX_RECORD)))
            except (OSError, ValueError) as error:
                reasons.append(f"{name}: {reason_of(error)}")
        raise TrainingError(
            f"the record of a trial must be as it was written, or its copy, got {str(folder)!r} with neither ({'; '.join(reasons)}); restore one "
            "of them from a backup, or choose another `name` for the sweep: the trial's adapter and reports are where they were"
        )


def read_trials(folder: Path) -> list[TrialRecord]:
    """Read the records of a sweep's trials, in their order."""
    records = [TrialRecord.read(trial) for trial in _trials(folder)]
    return sorted(records, key=lambda record: (record.number, record.started))


def mend_trials(folder: Path) -> list[str]:
    """Write the records of a sweep's trials anew from their copies where they are damaged; returns what there is to say of it.

    Raises:
        TrainingError: a copy is damaged too.
    """
    said = []
    for trial in sorted(_trials(folder)):
        try:
            unseal(read_text(trial / _TRIAL_FILE, limit=_MAX_RECORD))
        except (OSError, ValueError) as error:
            TrialRecord.read(trial).write(trial)
            said.append(
                f"{str(trial / _TRIAL_FILE)!r} was not as it was written ({reason_of(error)}); it is restored from its copy"
            )
    return said


def refused_by_disk(folder: Path) -> DiskError | None:
    """What a disk refused to one of a sweep's trials."""
    found = (read_error(trial) for trial in sorted(_trials(folder)))
    return next((error for error in found if isinstance(error, DiskError)), None)


def _trials(folder: Path) -> set[Path]:
    """Folders of the trials that there are."""
    return {file.parent for name in (_TRIAL_FILE, _COPY) for file in (folder / "trials").glob(f"*/{name}")}
