"""A disk that is really full: a small file system of its own on the folder concerned, and a ballast file."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["SmallDisk", "fill", "only_root", "read_only", "small_disk"]

_BALLAST = "ballast"


def only_root() -> None:
    """Skip loudly where nothing can be mounted; in CI as root, it has to be."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk: nothing was tried on a full one")


def fill(folder: Path) -> None:
    """Leave no block on the disk of a folder."""
    with (folder / _BALLAST).open("wb", buffering=0) as file:
        for size in (2**16, 2**12):
            try:
                while file.write(b"\1" * size) == size:
                    continue
            except OSError:
                continue


@dataclass(frozen=True)
class SmallDisk:
    """A file system that is mounted on a folder."""

    folder: Path

    @property
    def is_filled(self) -> bool:
        """Whether it was filled, and not freed since."""
        return (self.folder / _BALLAST).exists()

    def fill(self) -> None:
        """Leave no block of it."""
        fill(self.folder)

    def free(self) -> None:
        """Do what the message asks for; nothing where it was done."""
        (self.folder / _BALLAST).unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, *, kilobytes: int = 4096) -> Iterator[SmallDisk]:
    """Mount one of so many kilobytes on a folder, which is made."""
    only_root()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let a folder be read and not written."""
    only_root()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
