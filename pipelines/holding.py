"""One command at a time works in the folder of a run: the second is refused, and told who the first is.

The lock is the operating system's, so it is free as soon as its holder is dead. `owner.json` beside it says who holds it, in
words; where a file system has no locks, it is the lock: then a holder of this machine that is no more is known to be gone, and
one of another machine has to be removed by hand.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from grun.errors import ConfigError
from pipelines.console import note
from pipelines.owner import is_gone, process_owner

__all__ = ["holding"]

_LOCK, _OWNER = ".lock", "owner.json"

_held: set[Path] = set()
"""Folders that this process holds: what it does within may hold them again."""


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Be the one who works in a run's folder, for the time of the context. Makes the folder; one that stays empty goes again.

    Raises:
        ConfigError: somebody else does.
    """
    if folder in _held:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    descriptor = _lock(folder)
    if descriptor is None:
        _check_gone(folder)
    _held.add(folder)
    try:
        me = {"owner": process_owner(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        (folder / _OWNER).write_text(json.dumps(me), encoding="utf-8")
        yield
    finally:
        (folder / _OWNER).unlink(missing_ok=True)
        (folder / _LOCK).unlink(missing_ok=True)
        _held.discard(folder)
        if descriptor is not None:
            os.close(descriptor)
        with suppress(OSError):  # there is something in it
            for path in made:
                path.rmdir()


def _lock(folder: Path) -> int | None:
    """The descriptor that holds the lock; None on a file system that has none."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its holder took the folder away as it ended
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), (folder / _LOCK).stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise _refusal(folder) from None
        except FileNotFoundError:  # its holder took the file away as it ended
            pass
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)


def _check_gone(folder: Path) -> None:
    note(f"the file system of {folder} has no locks: nobody may give this command on two machines at once")
    with suppress(FileNotFoundError):
        if not is_gone(json.loads((folder / _OWNER).read_text(encoding="utf-8"))["owner"]):
            raise _refusal(folder, f", or delete {str(folder / _OWNER)!r} if that process is no more")


def _refusal(folder: Path, remedy: str = "") -> ConfigError:
    try:
        found = json.loads((folder / _OWNER).read_text(encoding="utf-8"))
        who = f"{found['owner']}, since {found['since']}"
    except (OSError, ValueError, KeyError):  # it has only just begun
        who = "another process"
    return ConfigError(
        f"one command at a time may work in a run's folder, got {str(folder)!r}, which is held by {who}; "
        f"wait for its end, or choose another `name`{remedy}"
    )
