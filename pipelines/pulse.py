"""Tasks whose process hangs: each says every second that it lives; one that falls silent is killed, and Ray runs its task again.

Ray starts a task again whose process has died. One that was stopped, or that waits for a disk that is gone, it lets wait for ever.
"""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grun.config import Config
from pipelines.notices import say

__all__ = ["PulseWatch", "beating"]

_BEAT_SECONDS = 1.0


class _Pulse(Config):
    """What a process writes down."""

    node: str
    pid: int
    started: float
    """When the process started: a number may be another process's by and by."""
    beat: int


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Write down again and again that this process lives; nothing is left at the end."""
    node, pid, started = ray.get_runtime_context().get_node_id(), os.getpid(), psutil.Process().create_time()
    ended, scratch = threading.Event(), path.with_suffix(f".{uuid.uuid4().hex}")

    def beat() -> None:
        count = 0
        while True:
            with suppress(OSError):  # the next one may find room again
                scratch.write_text(_Pulse(node=node, pid=pid, started=started, beat=count).model_dump_json(), encoding="utf-8")
                scratch.replace(path)
            count += 1
            if ended.wait(_BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


class PulseWatch:
    """Looks at the pulses of some tasks, and kills the processes of those that have fallen silent.

    Args:
        pulses: the files that they write.
        seconds: how long one may be silent.
        what: the tasks, for people.
    """

    def __init__(self, pulses: Iterable[Path], seconds: float, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.what = what
        self.clock = clock
        self._last: dict[Path, tuple[str, float]] = dict.fromkeys(pulses, ("", clock()))

    def __call__(self) -> None:
        """Look once."""
        for path, (text, since) in self._last.items():
            try:
                found = path.read_text(encoding="utf-8")
            except OSError:  # not begun, or done
                found = ""
            if found != text:
                self._last[path] = (found, self.clock())
            elif found and self.clock() - since > self.seconds:
                say(f"{self.what}: a task did not answer for {self.seconds:g} s and is started again")
                self._kill(_Pulse.model_validate_json(found))
                self._last[path] = (found, self.clock())

    def _kill(self, pulse: _Pulse) -> None:
        # on its node, as nothing that is sent to the process itself would be read
        there = NodeAffinitySchedulingStrategy(pulse.node, soft=False)
        cast(Any, ray.remote(_kill)).options(num_cpus=0, scheduling_strategy=there).remote(pulse.pid, pulse.started)


def _kill(pid: int, started: float) -> None:
    try:
        if psutil.Process(pid).create_time() == started:
            os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return
