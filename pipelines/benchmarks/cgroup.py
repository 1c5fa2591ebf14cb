"""Hold processes to a share of this machine's cores, by a control group of Linux (version 1 or 2)."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grun.errors import ClusterError

__all__ = ["CpuQuota", "check_quotas", "cpu_quota"]

_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")

_PERIOD_MICROSECONDS = 100_000

_END_SECONDS, _POLL_SECONDS = 30.0, 0.05


class CpuQuota:
    """A control group; whatever its processes start later is in it too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def hold(self, pid: int) -> None:
        """Put a process and all that it has started so far into the group."""
        (self.folder / "cgroup.procs").write_text(str(pid), encoding="ascii")
        for child in _children(pid):
            self.hold(child)


def check_quotas() -> None:
    """Raise unless quotas can be set here.

    Raises:
        ClusterError: they cannot.
    """
    root = _root()
    if root is None or not os.access(root, os.W_OK):
        found = (
            "no control group of Linux with a `cpu` controller" if root is None else f"`{root}`, which this user may not write to"
        )
        raise ClusterError(f"small nodes are made of this machine by control groups of Linux, got {found}; run as root on Linux")


@contextmanager
def cpu_quota(name: str, cores: float) -> Iterator[CpuQuota]:
    """A group that is held to so many cores for the time of the context; what is left in it then is killed."""
    root = _root()
    assert root is not None, "check_quotas comes first"
    folder = root / name
    folder.mkdir()
    quota = round(cores * _PERIOD_MICROSECONDS)
    try:
        if root == _V1:
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_MICROSECONDS), encoding="ascii")
            (folder / "cpu.cfs_quota_us").write_text(str(quota), encoding="ascii")
        else:
            (folder / "cpu.max").write_text(f"{quota} {_PERIOD_MICROSECONDS}", encoding="ascii")
        yield CpuQuota(folder)
    finally:
        _end_processes(folder)
        folder.rmdir()


def _end_processes(folder: Path) -> None:
    """Kill what is left in a group, and wait until the group has noticed: a group with processes cannot be removed."""
    deadline = time.monotonic() + _END_SECONDS
    while pids := (folder / "cgroup.procs").read_text(encoding="ascii").split():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"a small node must end within {_END_SECONDS:g} s, got its processes {', '.join(pids)} still there; end them"
            )
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _root() -> Path | None:
    """Where groups with a quota are made, if anywhere."""
    controllers = _V2 / "cgroup.controllers"
    if controllers.is_file() and "cpu" in controllers.read_text(encoding="ascii").split():
        return _V2
    return _V1 if (_V1 / "cgroup.procs").is_file() else None


def _children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text(encoding="ascii").split()]
