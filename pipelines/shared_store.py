"""Folders on shared storage: published by whoever has them, copied by whoever needs them, whole or not at all.

    <name>/objects/<sha256>    what a file holds, under the digest of it
    <name>/manifest.json       names, sizes and digests of the files; written last: a folder is there when this is

Two that publish the same folder at once cannot harm each other, though their files may differ in a bit: neither writes over
the other's objects, and either manifest names what is there.
"""

import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock
from pydantic import Field, NonNegativeInt, ValidationError

from grun.config.base import Config, InsidePath
from grun.errors import StorageError
from grun.lm.prefix_cache import file_digest
from pipelines.storage import Storage

__all__ = ["MANIFEST", "VERIFIED", "Manifest", "SharedFile", "SharedStore", "private_folder"]

MANIFEST, _OBJECTS = "manifest.json", "objects"

VERIFIED = ".verified"
"""In a copy: which run has read every byte of it, and of what."""

_PARALLEL = 4
"""Files on their way at once."""

OnProgress = Callable[[int, int], None]
"""Called with the bytes that have been moved, and with all of them."""


class SharedFile(Config):
    """One file of a published folder."""

    name: InsidePath
    """Its name in the folder."""
    num_bytes: NonNegativeInt
    """Its size."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Digest of what it holds, and the name of its object."""

    def is_at(self, path: Path, *, verify: bool = True) -> bool:
        """Whether a local file is this one.

        Args:
            verify: read it and compare its digest; otherwise only the size is compared.
        """
        return path.is_file() and path.stat().st_size == self.num_bytes and (not verify or file_digest(path) == self.sha256)


class Manifest(Config):
    """All files of a published folder."""

    files: tuple[SharedFile, ...]
    """The files."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.num_bytes for file in self.files)

    @property
    def digest(self) -> str:
        """Digest of the whole."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class SharedStore:
    """Published folders below a URI."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def manifest(self, name: str) -> Manifest | None:
        """What a published folder holds; None where there is none, or it is not finished.

        Raises:
            StorageError: the manifest is damaged.
        """
        content = self.storage.read(f"{name}/{MANIFEST}")
        if content is None:
            return None
        try:
            return Manifest.model_validate_json(content)
        except ValidationError:
            raise StorageError(
                f"a shared folder must have the manifest that was written, got {self.storage.at(f'{name}/{MANIFEST}')!r}, which cannot be "
                "read; delete that folder there"
            ) from None

    def put(self, name: str, files: Iterable[Path], on_progress: OnProgress | None = None) -> list[SharedFile]:
        """Write files as objects, those that are there already left out; nothing is published yet."""
        described = [
            (path, SharedFile(name=path.name, num_bytes=path.stat().st_size, sha256=file_digest(path))) for path in files
        ]
        moved = _Moved(sum(file.num_bytes for _path, file in described), on_progress)

        def write(path: Path, file: SharedFile) -> None:
            target = self._object(name, file)
            if self.storage.size(target) == file.num_bytes:
                moved(file.num_bytes)
            else:
                self.storage.upload(path, target, moved)

        _side_by_side([(write, pair) for pair in described])
        return [file for _path, file in described]

    def declare(self, name: str, files: Iterable[SharedFile]) -> Manifest:
        """Publish a folder of objects that are there.

        Raises:
            StorageError: one of them is not.
        """
        manifest = Manifest(files=tuple(sorted(files, key=lambda file: file.name)))
        sizes = {found.path: found.num_bytes for found in self.storage.list(f"{name}/{_OBJECTS}")}
        for file in manifest.files:
            if sizes.get(self._object(name, file)) != file.num_bytes:
                raise StorageError(
                    f"a shared folder is published when all its files are there, got {self.storage.at(name)!r} without {file.name}: somebody "
                    "deleted it meanwhile; run again"
                )
        self.storage.write(f"{name}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
        return manifest

    def publish(self, folder: Path, name: str, on_progress: OnProgress | None = None) -> Manifest:
        """Publish a local folder, without hidden files and folders in it."""
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        return self.declare(name, self.put(name, files, on_progress))

    def fetch(self, name: str, folder: Path, *, run: str | None = None, on_progress: OnProgress | None = None) -> Manifest | None:
        """Make a local folder what was published: one process on a node does it, others wait. Files that are right are kept.

        Args:
            run: name of the run that asks; what it has read once is only looked at the next time. None reads every byte.

        Returns:
            what was published; None where nothing is.

        Raises:
            StorageError: an object is damaged or missing, or there is no room for it.
        """
        manifest = self.manifest(name)
        if manifest is None:
            return None
        private_folder(folder)
        with FileLock(folder.with_suffix(".lock")):
            self.fetch_files(name, manifest.files, folder, run=run, on_progress=on_progress)
            known = {file.name for file in manifest.files} | {VERIFIED}
            for path in folder.iterdir():
                if path.name not in known:
                    path.unlink()
        return manifest

    def fetch_files(
        self,
        name: str,
        files: Sequence[SharedFile],
        folder: Path,
        *,
        run: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Copy objects into a local folder that nobody else writes to; as for :meth:`fetch`."""
        mark = folder / VERIFIED
        text = f"{run} {Manifest(files=tuple(files)).digest}"
        is_read = run is not None and mark.is_file() and mark.read_text(encoding="utf-8") == text
        missing = [file for file in files if not file.is_at(folder / file.name, verify=not is_read)]
        needed = sum(file.num_bytes for file in missing)
        if needed > (free := shutil.disk_usage(folder).free):
            raise StorageError(
                f"a node must have room for its copy of {self.storage.at(name)!r}, got {free / 1e9:.3g} GB free in {str(folder.parent)!r} on "
                f"{os.uname().nodename} for {needed / 1e9:.3g} GB; free space there, or set `cache.local` to another disk"
            )
        moved = _Moved(needed, on_progress)
        _side_by_side([(self._fetch_file, (name, file, folder, moved)) for file in missing])
        mark.write_text(text, encoding="utf-8")

    def _fetch_file(self, name: str, file: SharedFile, folder: Path, moved: "_Moved") -> None:
        """Copy an object; one that is not what was published is asked for once more. What the node has elsewhere is linked."""
        if _link_from_beside(file, folder):
            moved(file.num_bytes)
            return
        for _attempt in range(2):
            found = self._copy(name, file, folder, moved)
            if found is None:
                return
        raise StorageError(
            f"an object must be what was published, got {found} for {file.name}, twice, from {self.storage.at(self._object(name, file))!r}; "
            "delete that folder there, and what is wanted of it is made anew"
        )

    def _copy(self, name: str, file: SharedFile, folder: Path, moved: "_Moved") -> str | None:
        """Copy an object, and say what is wrong with it; None where nothing is, and the file is in its place."""
        scratch = folder / f".{file.name}.{uuid.uuid4().hex}.tmp"
        digest, size = hashlib.sha256(), 0
        try:
            with scratch.open("xb") as target:
                for block in self.storage.blocks(self._object(name, file)):
                    digest.update(block)
                    size += len(block)
                    target.write(block)
                    moved(len(block))
            if size != file.num_bytes:
                return f"{size} bytes of {file.num_bytes}"
            if digest.hexdigest() != file.sha256:
                return "other bytes"
            os.replace(scratch, folder / file.name)
        except FileNotFoundError:
            return "nothing"
        except OSError as error:  # those of the storage are told apart already
            raise StorageError(
                f"a node must be able to write its copy of {self.storage.at(name)!r}, got {error.strerror} in {str(folder)!r} on "
                f"{os.uname().nodename}; mend that, or set `cache.local` to another disk"
            ) from None
        finally:
            scratch.unlink(missing_ok=True)
        return None

    def take_back(self, name: str, files: Iterable[SharedFile]) -> None:
        """Delete objects that were put."""
        self.storage.delete(*(self._object(name, file) for file in files))

    def content(self, name: str, file: SharedFile) -> bytes:
        """What a small file holds, checked.

        Raises:
            StorageError: it is damaged or missing.
        """
        found = self.storage.read(self._object(name, file))
        if found is None or hashlib.sha256(found).hexdigest() != file.sha256:
            raise StorageError(
                f"an object must be what was published, got {'nothing' if found is None else 'other bytes'} for {file.name} from "
                f"{self.storage.at(self._object(name, file))!r}; delete that folder there, and what is wanted of it is made anew"
            )
        return found

    def remove(self, name: str, *, keep: Sequence[str] = ()) -> None:
        """Delete a folder, the manifest first, so that nobody begins to read what is being deleted.

        Args:
            keep: objects below it that stay, or that are for the caller to delete.
        """
        self.storage.delete(f"{name}/{MANIFEST}")
        kept = tuple(f"{name}/{path}" for path in keep)
        paths = [found.path for found in self.storage.list(name) if not found.path.startswith(kept)]
        _side_by_side([(self.storage.delete, (path,)) for path in paths])
        self.storage.delete_empty(name)

    def _object(self, name: str, file: SharedFile) -> str:
        return f"{name}/{_OBJECTS}/{file.sha256}"

    def copy_objects(self, source: str, target: str, files: Iterable[SharedFile]) -> None:
        """Copy objects of another folder, on the storage itself where it can."""
        _side_by_side([(self.storage.copy, (self._object(source, file), self._object(target, file))) for file in files])


class _Moved:
    """Adds up bytes, from any thread."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.total, self.done, self.on_progress = total, 0, on_progress
        self._lock = threading.Lock()

    def __call__(self, amount: int) -> None:
        with self._lock:
            self.done += amount
            if self.on_progress is not None:
                self.on_progress(min(self.done, self.total), self.total)


def _side_by_side(calls: Sequence[tuple[Callable[..., object], tuple[object, ...]]]) -> None:
    """Make some calls in a few threads; the first error is raised when those under way have ended."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        futures = [pool.submit(function, *arguments) for function, arguments in calls]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _link_from_beside(file: SharedFile, folder: Path) -> bool:
    """Take a file over from another folder of the node without copying it, as folders of one kind have files in common."""
    for path in folder.parent.glob(f"*/{file.name}"):
        if path.parent == folder or not file.is_at(path):
            continue
        scratch = folder / f".{file.name}.{uuid.uuid4().hex}.tmp"
        try:
            os.link(path, scratch)
            os.replace(scratch, folder / file.name)
        except OSError:  # gone meanwhile, or a disk without links
            return False
        return True
    return False


def private_folder(folder: Path) -> None:
    """Make a folder that its owner alone can read, and refuse one that somebody else has put there.

    Raises:
        StorageError: it is somebody else's, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owners = {folder.stat().st_uid, folder.lstat().st_uid} - {os.getuid()}
        if not owners:
            folder.chmod(0o700)
            return
        reason = f"which belongs to user {owners.pop()}"
    except OSError as error:
        reason = error.strerror or str(error)
    raise StorageError(
        f"copies of shared data must lie in a folder of one's own, got {str(folder)!r} on {os.uname().nodename} ({reason}); set `cache.local`"
    )
