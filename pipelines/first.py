"""Imported before anything else by every verb: importing the rest takes seconds, and an interruption then is one as well."""

import os
import signal
import sys
from pathlib import Path

from pipelines.ending import CONTINUES, INTERRUPTED

__all__: list[str] = []


def _end(_signal: int, _frame: object) -> None:
    os.write(2, f"{CONTINUES}\n".encode())  # nothing has been started yet
    os._exit(INTERRUPTED)


if Path(sys.argv[0]).resolve().parent == Path(__file__).parent:  # the process is a verb's, and not that of a test or a worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
