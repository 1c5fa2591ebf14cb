"""Callbacks: everything that watches training and is not learning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from grun.interventions import Adapter
from grun.training.optimizer import AdapterOptimizer

__all__ = ["Callback", "Progress", "StopTraining"]


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
