"""Processes that hold still at a chosen place until the test that waits for them there does what it came to do."""

import os
import threading
from pathlib import Path
from typing import Any

from tests.faults.commands import Started
from tests.faults.injection import Injection

__all__ = ["FIFO", "at", "hold", "reached"]

FIFO = "FAULT_FIFO"
"""Variable that names the pipe by which a process says that it is there."""


def hold(function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001 - what a `replace` is called with
    """Say that this process is here, and stay."""
    with open(os.environ[FIFO], "w") as pipe:  # opens once somebody reads
        pipe.write("here")
    threading.Event().wait()


def at(where: str, folder: Path, *, nth: int = 1, name: str = "held") -> tuple[Injection, dict[str, str]]:
    """The injection that holds the first process that comes there for the nth time, and the variable that it needs."""
    fifo = folder / f"{name}.pipe"
    os.mkfifo(fifo)
    return (
        Injection(where, "replace", nth=nth, by="tests.faults.holding_still:hold", once=str(folder / f"{name}.reached")),
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


