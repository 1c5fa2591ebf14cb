"""The spool: each step's metrics as a line of a file, from which they are shipped to MLflow; nothing is lost with a server.

    {"step": int, "time_ms": int, "metrics": {"part/quantity": float, ...}, "crc32": int}

The sum of a line tells whether it is as it was written. Before a checkpoint is saved, all lines up to it are on the disk; so a run
that goes on from one computes what is missing once more, to the same numbers. Of a step that was written twice, the last counts.
"""

import json
import math
import re
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from grun.errors import DiskError
from grun.training.callbacks import Progress
from grun.writing import add_line, on_disk, telling

__all__ = ["MetricsSpool", "SpoolLine", "read_spool_lines", "whole_steps"]

_LARGEST_INTEGER = 2**63 - 1
"""What databases hold."""

_SUM = re.compile(rb', "crc32": (\d+)\}$')


@dataclass(frozen=True)
class SpoolLine:
    """The metrics of a step."""

    step: int
    time_ms: int
    metrics: Mapping[str, float]

    def write(self) -> str:
        """The line."""
        body = json.dumps({"step": self.step, "time_ms": self.time_ms, "metrics": dict(self.metrics)})
        return f'{body[:-1]}, "crc32": {zlib.crc32(body.encode())}}}'

    @classmethod
    def parse(cls, line: bytes) -> "SpoolLine":
        """Read a line; one without a sum is of a version before there were any.

        Raises:
            ValueError: it is not a line of a spool, or not as it was written.
        """
        if (found := _SUM.search(line)) is not None and zlib.crc32(line[: found.start()] + b"}") != int(found[1]):
            raise ValueError("not as it was written")
        try:
            entry = json.loads(line)
            metrics = {str(key): math.nan if value is None else float(value) for key, value in entry["metrics"].items()}
            step, time_ms = int(entry["step"]), int(entry["time_ms"])
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"no entry of a spool: {type(error).__name__}") from None
        if not (0 <= step <= _LARGEST_INTEGER and 0 <= time_ms <= _LARGEST_INTEGER):
            raise ValueError("an integer that no store can hold")
        return cls(step, time_ms, metrics)


def read_spool_lines(path: Path) -> dict[int, SpoolLine]:
    """The whole lines of a spool by step; of a step that was written twice, the last. None where there is no file."""
    lines = {}
    content = path.read_bytes() if path.is_file() else b""
    for text in content.splitlines():
        with suppress(ValueError):
            line = SpoolLine.parse(text)
            lines[line.step] = line
    return lines


def whole_steps(path: Path) -> int:
    """How many steps from the first on have a whole line."""
    steps = read_spool_lines(path)
    return next(count for count in range(len(steps) + 1) if count + 1 not in steps)


class MetricsSpool:
    """Appends each step's metrics to the file."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.clock = clock
        self._waiting: list[str] = []

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; a disk that refuses it is asked again with the next one, and at the latest by :meth:`flush`."""
        self._waiting.append(SpoolLine(step, int(self.clock() * 1000), metrics).write())
        with suppress(DiskError):
            self._append()

    def flush(self) -> None:
        """Wait until all lines are on the disk.

        Raises:
            DiskError: there is no room for them, or the like.
        """
        self._append()
        if self.path.is_file():
            with telling(self.path):
                on_disk(self.path)

    def _append(self) -> None:
        while self._waiting:
            add_line(self.path, self._waiting[0])
            del self._waiting[0]

    def __call__(self, progress: Progress) -> None:
        """Append the metrics of a step."""
        self.write(progress.step, progress.metrics)
