"""Faults that a test arms on a cluster that other tests use too, and what workers of Ray Train leave behind."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray

from tests.faults.injection import Injection

__all__ = ["Arms", "named", "nothing_is_left", "rescue", "stopped", "until", "workers"]

_SECONDS = 120


class Arms:
    """Faults that happen once after they are armed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def fault(self, name: str, where: str, do: Any = "kill", **options: Any) -> Injection:
        """One of them."""
        return Injection(where, do, armed=str(self.folder / name), **options)

    @contextmanager
    def armed(self, *names: str) -> Iterator[None]:
        """Let some of them happen during the context; every one has to."""
        for name in names:
            (self.folder / name).touch()
        try:
            yield
            assert [path.name for path in self.folder.iterdir()] == []
        finally:
            for path in self.folder.iterdir():
                path.unlink()


def _children(state: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if state(process):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def named(word: str) -> list[psutil.Process]:
    """Ray's processes below this one whose title has a word."""
    return _children(lambda process: any(word in part for part in process.cmdline()))


def workers() -> list[psutil.Process]:
    """The workers of Ray Train below this process."""
    return named("RayTrainWorker")


def stopped() -> list[psutil.Process]:
    """What is stopped below this process."""
    return _children(lambda process: process.status() == psutil.STATUS_STOPPED)


def until(look: Callable[[], bool], instead: Callable[[], object] = lambda: "") -> None:
    """Wait for something that comes by itself; `instead` says what there is where it does not."""
    end = time.monotonic() + _SECONDS
    while not look():
        assert time.monotonic() < end, f"it never came: {instead()}"
        time.sleep(0.1)


def _held_groups() -> list[object]:
    """The placement groups that the cluster still keeps."""
    return [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def nothing_is_left() -> None:
    """No worker lives, and no placement group is held."""
    until(lambda: not workers())
    until(lambda: not _held_groups(), _held_groups)


@contextmanager
def rescue(seconds: float = 280) -> Iterator[None]:
    """Kill what hangs if the context takes so long: without its safeguard a test has to fail, and not to hang."""

    def kill() -> None:
        for process in [*stopped(), *workers()]:
            process.send_signal(signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
