"""Callbacks: everything that watches training and is not learning."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from grun.interventions import Adapter
from grun.training.optimizer import AdapterOptimizer

__all__ = ["Callback", "MetricsSpool", "Progress", "StopTraining"]


@dataclass(frozen=True)
class Progress:
    """Where training is after a step."""

    step: int
    """Optimizer steps that are done."""
    total_steps: int
    metrics: Mapping[str, float]
    """Global loss terms of the step."""
    adapter: Adapter
    optimizer: AdapterOptimizer

    @property
    def is_last(self) -> bool:
        """Whether this was the last step."""
        return self.step == self.total_steps


class StopTraining(Exception):  # noqa: N818 - a signal, not an error
    """Raised by a callback, on all workers in the same step, to end training early with what was learnt."""


class Callback(Protocol):
    """Called after every optimizer step, on every worker."""

    def __call__(self, progress: Progress) -> None:
        """Look at the progress; may raise :class:`StopTraining`."""
        ...


class MetricsSpool:
    """Appends each step's metrics to a JSONL file, from which they are shipped to MLflow; nothing is lost with a server."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.clock = clock

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        line = json.dumps({"step": step, "time_ms": int(self.clock() * 1000), "metrics": dict(metrics)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def __call__(self, progress: Progress) -> None:
        """Append the metrics of a step."""
        self.write(progress.step, progress.metrics)
