"""Putting a finished folder in its place: whole or not at all."""

import ctypes
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from grun.errors import AdapterError
from grun.writing import on_disk, settle

__all__ = ["put_folder"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def put_folder(partial: Path, folder: Path, *, kind: str, names: Collection[str]) -> None:
    """Move a finished folder to its name; an older one there goes only once the new one stands.

    Args:
        kind: what it is, as messages say it.
        names: what folders of this kind hold; one with anything else is not replaced.

    Raises:
        AdapterError: something else is there.
        OSError: it cannot be moved.
    """
    settle(partial)
    if not folder.exists():
        partial.replace(folder)
        on_disk(folder.parent)
        return
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if not present <= set(names):
        raise AdapterError(
            f"only {kind} may be replaced by {kind}, got {str(folder)!r} with {sorted(present)}; choose another place"
        )
    if not _exchange(partial, folder):
        old = folder.with_name(f".{folder.name}.partial-old-{os.getpid()}")
        folder.replace(old)
        partial.replace(folder)
        shutil.rmtree(old)
    on_disk(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders take each other's names in one step, where the system and its file system can: there is no moment without one."""
    function = getattr(ctypes.CDLL(None), "renameat2", None)
    if function is None:
        return False
    status: int = function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return status == 0
