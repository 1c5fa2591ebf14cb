"""Writing what others will read: a file or a folder is there whole or not at all, and what is wrong with the disk is said by name.

    write_text, write_bytes    one file, under its name only once all of it is on the disk
    whole_folder               a folder, likewise; what writers that died have left beside it is cleared away
    add_line                   one more line of a file, never glued to one that was torn
    seal, unseal               an object of JSON that carries its own digest

"On the disk" is meant: without `fsync` a file that was renamed into its place may be empty after a power failure, and count.
What the disk refuses is a :class:`DiskError`, which starting again cannot mend: with the path, and what to free.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from grun.errors import DiskError
from grun.reading import MalformedError, parse_json

__all__ = [
    "add_line",
    "disk_error",
    "move_into_place",
    "on_disk",
    "partial_folder",
    "seal",
    "settle",
    "telling",
    "unseal",
    "whole_folder",
    "write_bytes",
    "write_text",
]

_REASONS = {
    errno.ENOSPC: ("has no room left", "free space there, or name a larger disk by `output`"),
    errno.EDQUOT: ("is used up to its quota", "delete files there, or have the quota raised"),
    errno.EROFS: ("cannot be written to", "mount it for writing, or name another by `output`"),
    errno.EACCES: ("may not be written to by this user", "grant that, or name another by `output`"),
    errno.EPERM: ("may not be written to by this user", "grant that, or name another by `output`"),
    errno.EIO: ("fails", "look at the system's log and replace it, or name another by `output`"),
}

_SEAL = "sha256"


def disk_error(error: BaseException, path: Path | str | None = None) -> DiskError | None:
    """What an error says of the disk, with where and the remedy; None where it is about something else.

    Args:
        path: what was being written; None where only the error may know.
    """
    number = _number(error)
    if number not in _REASONS or (path is None and number in (errno.EACCES, errno.EPERM)):
        return None  # what is not permitted may be anything, where nothing was being written
    where = path or getattr(error, "filename", None)
    reason, remedy = _REASONS[number]
    room = f"; {_room(Path(where))}" if where is not None and number in (errno.ENOSPC, errno.EDQUOT) else ""
    on = f"the disk of {str(where)!r}" if where is not None else "a disk (which one, the system does not say)"
    return DiskError(
        f"what is written must find its place, got {on}, which {reason} ({os.strerror(number)}{room}); {remedy}. What was finished is kept: "
        "the same command goes on from there"
    )


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # libraries in Rust have the number in their words alone
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _room(path: Path) -> str:
    """What is free where a path is, or would be."""
    existing = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    with suppress(OSError):
        usage = shutil.disk_usage(existing)
        return f"{usage.free / 1e6:.3g} of {usage.total / 1e6:.3g} MB are free"
    return "how much is free is not known"


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Say of a failing disk what was being written.

    Raises:
        DiskError: instead of the system's, or a library's, own error.
    """
    try:
        yield
    except Exception as error:
        if (told := disk_error(error, path)) is None:
            raise
        raise told from error


def on_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without it, for folders
            raise
    finally:
        os.close(handle)


def move_into_place(scratch: Path, path: Path) -> None:
    """Give a finished file its name."""
    on_disk(scratch)
    os.replace(scratch, path)
    on_disk(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, also while others write the same one.

    Raises:
        DiskError: the disk is full, over quota, failing or not to be written to.
        OSError: anything else is wrong with the path.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with telling(path):
        try:
            scratch.write_bytes(content)
            move_into_place(scratch, path)
        except BaseException:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8; as :func:`write_bytes`."""
    write_bytes(path, text.encode())


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside another, to be filled and moved to its place; what is left of it at the end of the context is removed.

    Those of writers that died are recognised by their locks, which nobody holds any more, and removed too.

    Raises:
        DiskError: as :func:`write_bytes`.
    """
    with telling(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_left_behind(folder)
        partial = folder.with_name(f".{folder.name}.partial-{uuid.uuid4().hex}")
        partial.mkdir()
        handle = os.open(partial, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks: then nothing is cleared away there
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(handle)


def settle(folder: Path) -> None:
    """Wait until all of a folder is on the disk."""
    for path in (*folder.rglob("*"), folder):
        on_disk(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Make a folder, whole or not at all: what the context leaves in the one it is given goes to its place at the end.

    Where there is one already, whoever was first has made it, and it stays.

    Raises:
        DiskError: as :func:`write_bytes`.
    """
    with partial_folder(folder) as partial:
        yield partial
        settle(partial)
        if not folder.exists():
            with suppress(FileExistsError):
                partial.rename(folder)
            on_disk(folder.parent)


def _clear_left_behind(folder: Path) -> None:
    """Remove what died half done; nobody holds its lock any more."""
    for partial in folder.parent.glob(f".{folder.name}.partial-*"):
        with suppress(OSError):
            handle = os.open(partial, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                os.close(handle)


def add_line(path: Path, line: str) -> None:
    """Append a line; one that was torn before it, by a crash or a full disk, is ended first and harms nobody but itself.

    Raises:
        DiskError: as :func:`write_bytes`.
    """
    with telling(path), path.open("ab+") as file:
        torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write(b"\n" * torn + line.encode() + b"\n")


def seal(values: Mapping[str, Any]) -> str:
    """An object as JSON, with the digest of all the rest in its last place."""
    plain = json.loads(json.dumps(values))  # as it will be read
    return json.dumps({**plain, _SEAL: _digest(plain)}, indent=2)


def unseal(text: str | bytes) -> dict[str, Any]:
    """Read what :func:`seal` made. An object without a seal is of a version before there were any, and taken as it is.

    Raises:
        MalformedError: it is no object of JSON, or not as it was sealed.
    """
    values = parse_json(text)
    if not isinstance(values, dict):
        raise MalformedError("no object of JSON")
    digest = values.pop(_SEAL, None)
    if digest is not None and digest != _digest(values):
        raise MalformedError("not as it was written: it does not have its own digest")
    return values


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
