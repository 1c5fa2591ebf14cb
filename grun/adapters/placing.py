"""Putting a finished folder in its place: whole or not at all."""

import shutil
from collections.abc import Collection
from os import getpid
from pathlib import Path

from grun.errors import AdapterError

__all__ = ["partial_of", "put_folder"]


def partial_of(folder: Path) -> Path:
    """Where a folder is made before it is put in its place."""
    return folder.with_name(f".{folder.name}.partial-{getpid()}")


def put_folder(partial: Path, folder: Path, *, kind: str, names: Collection[str]) -> None:
    """Move a finished folder to its name; an older one there goes only once the new one stands.

    Args:
        kind: what it is, as messages say it.
        names: what folders of this kind hold; one with anything else is not replaced.

    Raises:
        AdapterError: something else is there; then `partial` is gone.
        OSError: it cannot be moved.
    """
    if not folder.exists():
        partial.replace(folder)
        return
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if not present <= set(names):
        shutil.rmtree(partial)
        raise AdapterError(
            f"only {kind} may be replaced by {kind}, got {str(folder)!r} with {sorted(present)}; choose another place"
        )
    old = folder.with_name(f".{folder.name}.old-{getpid()}")
    folder.replace(old)
    partial.replace(folder)
    shutil.rmtree(old)
