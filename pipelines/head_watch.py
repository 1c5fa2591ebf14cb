"""Watching the head of the Ray cluster that a command runs on: where it dies, the command says so and ends.

Ray itself would let it wait for a minute, and then abort the process with a dump of its stack.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import ray

from pipelines.ending import CONTINUES, INTERRUPTED, is_installed, is_interrupted, stop_now

__all__ = ["watching_head"]

_LOOK_SECONDS = 0.2
_AWAY_SECONDS = 20.0
"""How long the head of a cluster that we were given may be away. Less than the minute after which Ray ends the process."""

_TIDY_SECONDS = 5.0
"""How long a command that was interrupted has to close what is open once the head is gone."""

_LOST = 2


@contextmanager
def watching_head(address: str | None) -> Iterator[None]:
    """End the process, with a message, if the cluster's head dies within the context. A process that is not a command's own stays.

    One that was interrupted meanwhile ends as such, a few seconds later.

    Args:
        address: of the cluster; None for one that this process has started.
    """
    if not is_installed():
        yield
        return
    reason = _own_head() if address is None else _given_head(address)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_LOOK_SECONDS):
            why = reason()
            if why is None:
                continue
            # a signal to the whole process group, as of systemd or `timeout`, ends the head too; what is being closed may wait for it
            if is_interrupted() and not stop.wait(_TIDY_SECONDS):
                stop_now(INTERRUPTED, CONTINUES)
            if not stop.is_set():
                stop_now(
                    _LOST,
                    f"error: the Ray cluster must stay up while a command runs on it, got {why}; "
                    f"{'' if address is None else 'start it again, and '}give the same command again: it continues where this one stopped",
                )

    thread = threading.Thread(target=watch, name="head", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _own_head() -> Callable[[], str | None]:
    """Whether a process of the cluster's head is gone, which we have started ourselves."""
    names = {"gcs_server", "raylet"}
    children = {child: child.name() for child in psutil.Process().children() if child.name() in names}

    def reason() -> str | None:
        for child, name in children.items():
            if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
                return f"the end of its process `{name}` (pid {child.pid})"
        return None

    return reason


def _given_head(address: str) -> Callable[[], str | None]:
    """Whether nobody has listened at the head's address for a while."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    seen = time.monotonic()

    def reason() -> str | None:
        nonlocal seen
        try:
            socket.create_connection((host, int(port)), timeout=_AWAY_SECONDS / 4).close()
        except OSError as error:
            away = time.monotonic() - seen
            return (
                f"no answer at RAY_ADDRESS={address!r} for {away:.0f} s ({error.strerror or error})"
                if away > _AWAY_SECONDS
                else None
            )
        seen = time.monotonic()
        return None

    return reason
