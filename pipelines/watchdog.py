"""A worker that gets nowhere ends itself, so that its group starts again.

Ray asks every worker whether it lives, and one that waits for ever says yes. Only the worker knows that it stands still: in a
deadlock, or since another one has given up, with the reason in the run's folder.
"""

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.notices import end_process, say
from pipelines.polling import polling

__all__ = ["Watchdog", "heeding"]

_LOOK_SECONDS = 1.0

_PATIENCE_SECONDS = 5.0
"""Time in which other workers may find the same wrong themselves."""


@contextmanager
def heeding(error: Path) -> Iterator[None]:
    """During the context, end this process soon after another worker has written why it gave up: nobody else would."""
    waited = 0.0

    def look() -> None:
        nonlocal waited
        waited += _LOOK_SECONDS if error.is_file() else 0.0
        if waited > _PATIENCE_SECONDS:
            end_process()

    with polling(look, seconds=_LOOK_SECONDS, name="heeding"):
        yield


class Watchdog:
    """A training callback that ends the process when no step is finished for too long.

    It counts seconds that it has lived through: a process that was stopped for an hour does not end when it goes on.

    Args:
        name: of the worker, for people.
        seconds: how long a step may take.
        run_folder: where the stacks of a process that stood still are kept.
    """

    def __init__(self, name: str, seconds: float, run_folder: Path) -> None:
        self.name = name
        self.seconds = seconds
        self.run_folder = run_folder
        self._idle = 0.0
        self._is_paused = False

    def __call__(self, progress: object) -> None:  # noqa: ARG002 - as callbacks are called
        """A step is done."""
        self._idle = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the time of the context."""
        self._idle = 0.0
        with polling(self._look, seconds=_LOOK_SECONDS, name="watchdog"):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what others take their time for, such as a driver that takes a report."""
        self._is_paused = True
        try:
            yield
        finally:
            self._idle, self._is_paused = 0.0, False

    def _look(self) -> None:
        if self._is_paused:
            return
        self._idle += _LOOK_SECONDS
        if self._idle > self.seconds:
            stacks = self.run_folder / f"stood-still-{os.getpid()}.txt"
            with stacks.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
            say(f"{self.name} finished no step for {self.seconds:g} s and is replaced; where it stood is in {stacks}")
            end_process()
