"""Who builds a prefix cache, who reads it, and that nobody deletes it meanwhile.

    <output>/cache/<digest>.lock    held by the one who builds, or deletes
    <output>/cache/<digest>.used    held by all commands that read, together

Both are the operating system's, and free as soon as their holder is dead. A file system without locks protects nobody who reads.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["InUseError", "building", "deleting", "reading"]


class InUseError(Exception):
    """A cache cannot be deleted now; the message says what is done with it."""


def building(folder: Path) -> FileLock:
    """Be the one who builds in a cache's folder, for the length of a `with` block; waits for whoever does."""
    return FileLock(folder.with_suffix(".lock"))


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Keep a cache from being deleted for the length of a `with` block."""
    with _used(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def deleting(folder: Path) -> Iterator[None]:
    """Be the only one who has to do with a cache, for the length of a `with` block.

    Raises:
        InUseError: it is being built or read.
    """
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0), _used(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield
    except Timeout:
        raise InUseError("being built") from None
    except BlockingIOError:
        raise InUseError("being read") from None


@contextmanager
def _used(folder: Path, how: int) -> Iterator[None]:
    descriptor = os.open(folder.with_suffix(".used"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            raise
        except OSError:  # no locks here
            pass
        yield
    finally:
        os.close(descriptor)
