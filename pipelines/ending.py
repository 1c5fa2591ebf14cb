"""How a command ends before its work is done: interrupted once, tidily; interrupted twice, at once; or what it stands on is gone.

The first SIGINT or SIGTERM is a `KeyboardInterrupt` wherever the main thread is, and everything that is open is closed. The
second ends the process, and all that it has started, whatever the main thread is waiting for: a thread of its own is told of
signals by the interpreter's wakeup descriptor, which the main thread's state does not matter to.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

__all__ = ["CONTINUES", "INTERRUPTED", "end_children", "install", "is_installed", "is_interrupted", "leave", "stop_now"]

INTERRUPTED = 130
"""Exit status of a command that was interrupted."""

CONTINUES = "interrupted; the same command continues where this one stopped"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ENDS = 3
"""Looks for children that are left: one may have started another before it died."""


class _State:
    count = 0
    """Interruptions so far."""
    is_installed = False


def install() -> None:
    """Take SIGINT and SIGTERM for this process, once. To be called in the main thread."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    if _State.is_installed:
        return
    _State.is_installed = True
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def is_installed() -> bool:
    """Whether this process is a command's own, and may be ended."""
    return _State.is_installed


def is_interrupted() -> bool:
    """Whether somebody has asked this process to end."""
    return _State.count > 0


def _interrupt(_signal: int, _frame: object) -> None:
    _State.count += 1
    if _State.count == 1:  # a second one must not break off what the first has begun to close; `_watch` ends it all
        raise KeyboardInterrupt


def _watch(reader: socket.socket) -> None:
    """Count signals as they arrive, which is before the main thread hears of them."""
    seen = 0
    while received := reader.recv(64):
        seen += sum(number in _SIGNALS for number in received)
        if seen == 1 and os.isatty(2):
            _say("finishing tidily; interrupt again to stop at once")
        if seen > 1:
            _State.count = max(_State.count, seen)  # who misses a process that is ended now is to know why
            stop_now(INTERRUPTED, "stopped at once; the same command continues where this one stopped")


def stop_now(status: int, text: str) -> NoReturn:
    """End this process and all that it has started, now. May be called in any thread."""
    _say(text)
    end_children()
    os._exit(status)


def leave(status: int, run: Callable[[int], NoReturn] = sys.exit) -> NoReturn:
    """End this process; nothing of a command that was interrupted is left, nor waited for."""
    if not is_interrupted():
        run(status)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    end_children()
    os._exit(status)


def end_children() -> None:
    """Kill every process that this one has started, and those that they have."""
    import psutil

    for _ in range(_ENDS):
        children = psutil.Process().children(recursive=True)
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=1)
        if not children:
            return


def _say(text: str) -> None:
    """Write a line whatever anybody else is writing: whoever holds the console may never come back."""
    os.write(2, f"{text}\n".encode())
