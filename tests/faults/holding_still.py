"""Processes that hold still at a chosen place until the test that waits for them there does what it came to do."""

import os
import threading
from pathlib import Path
from typing import Any

from tests.faults.commands import Started
from tests.faults.injection import Injection

__all__ = ["FIFO", "at", "hold", "reached", "say_here"]

FIFO = "FAULT_FIFO"
"""Variable that names the pipe by which a process says that it is there."""


def hold(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Say that this process is here, and stay."""
    say_here()
    threading.Event().wait()


def say_here() -> None:
    """Tell the test that waits for it; returns once it has heard."""
    with open(os.environ[FIFO], "w") as pipe:  # opens once somebody reads
        pipe.write("here")


def at(where: str, folder: Path, *, nth: int = 1, name: str = "held", by: str | None = None) -> tuple[Injection, dict[str, str]]:
    """The injection that holds the first process that comes there for the nth time, and the variable that it needs.

    Args:
        by: what takes the place of the function there, and calls `hold` in the end; None: `hold` itself.
    """
    fifo = folder / f"{name}.pipe"
    os.mkfifo(fifo)
    return (
        Injection(
            where,
            "replace",
            nth=nth,
            by=by or "tests.faults.holding_still:hold",
            always=by is not None,
            once=None if by else str(folder / f"{name}.reached"),
        ),
        {FIFO: str(fifo)},
    )


def reached(started: Started, variables: dict[str, str]) -> None:
    """Wait until a process of the command is there; the command may not end before."""
    watch = threading.Thread(target=_release, args=(started, variables[FIFO]), daemon=True)
    watch.start()
    said = Path(variables[FIFO]).read_text()
    assert said == "here", f"it ended first: {started.process.communicate()}"


def _release(started: Started, fifo: str) -> None:
    """Where the command ends, its reader must not wait for ever."""
    started.process.wait()
    with open(fifo, "w"):
        return
