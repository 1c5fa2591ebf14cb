"""What a trial of a sweep leaves in its folder about itself: `trial.json`."""

from pathlib import Path
from typing import Any

from pydantic import Field

from grun.config import Config

__all__ = ["TrialRecord", "read_trials"]

_TRIAL_FILE = "trial.json"


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
    result: dict[str, float] = Field(default_factory=dict)
    """The objectives at the trial's best threshold."""

    def write(self, folder: Path) -> None:
        """Write the record, whole or not at all."""
        partial = folder / f".{_TRIAL_FILE}.partial"
        partial.write_text(self.model_dump_json(indent=2), encoding="utf-8")
        partial.replace(folder / _TRIAL_FILE)


def read_trials(folder: Path) -> list[TrialRecord]:
    """Read the records of a sweep's trials, in their order."""
    files = (folder / "trials").glob(f"*/{_TRIAL_FILE}")
    records = [TrialRecord.model_validate_json(file.read_text(encoding="utf-8")) for file in files]
    return sorted(records, key=lambda record: (record.number, record.started))
