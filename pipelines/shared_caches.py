"""Prefix caches on shared storage, and each node's own copies of those that it reads.

    <cache.uri>/<digest>/records.json            digests of the records that it is made from; first to come and last to go
    <cache.uri>/<digest>/shards/<number>.json    the files of a shard that is done, and which rows they are of
    <cache.uri>/<digest>/objects, manifest.json  see :mod:`pipelines.shared_store`; a cache is there when its manifest is
    <cache.uri>/<digest>/last-used               when a run last asked for it
    <cache.uri>/<digest>/copies/<node>.json      nodes that have a copy; they outlive a cache that was deleted
    <cache.local>/<place>/<digest>/              a node's copy, in a folder for each URI

Whoever needs a cache on a node fetches it there, and with that drops the node's copies of caches that are deleted: so is the text
of a request that was purged somewhere else.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from filelock import FileLock, Timeout
from pydantic import ValidationError

from grun.config import Recipe
from grun.config.base import Config
from grun.data.prompts import Example
from grun.errors import CacheError
from grun.lm.prefix_cache import CACHE_FILE, CacheState, ShardIndex, sequence_digest, shard_path
from pipelines.shared_store import MANIFEST, VERIFIED, SharedFile, SharedStore, private_folder
from pipelines.storage import Storage
from pipelines.transfers import reporting

__all__ = ["RECORDS_FILE", "Entry", "SharedCaches", "at_hand", "rows_digest"]

RECORDS_FILE = "records.json"

_COPIES, _LAST_USED, _SHARDS = "copies", "last-used", "shards"


class _SharedShard(Config):
    """A shard that is done."""

    rows: str
    """Digest of its rows: builds may divide the same rows otherwise."""
    files: tuple[SharedFile, ...]
    """Tensors and index."""


@dataclass(frozen=True)
class Entry:
    """A cache at the URI, finished or not; or what is left of one that was deleted."""

    name: str
    is_finished: bool
    is_deleted: bool
    num_bytes: int
    last_used: float
    """Seconds since the epoch."""
    copies: tuple[str, ...]
    """Nodes that have a copy."""


def rows_digest(examples: Iterable[Example]) -> str:
    """Digest of the rows of a shard, in any order."""
    return _digest_of(map(sequence_digest, examples))


def _digest_of(sequences: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(sequences)).encode()).hexdigest()


def at_hand(recipe: Recipe, cache: Path | None) -> Path | None:
    """The cache that a process reads: this node's copy, fetched if it is not there; without `cache.uri`, the cache itself.

    Raises:
        CacheError: it was deleted.
        StorageError: it cannot be fetched, or is damaged at the URI.
    """
    shared = SharedCaches.of(recipe)
    if cache is None or shared is None:
        return cache
    with reporting(recipe, f"prefix cache {cache.name}") as on_progress:
        return shared.fetch(cache.name, on_progress)


class SharedCaches:
    """The caches at a URI, as seen from a node."""

    def __init__(self, storage: Storage, local: Path) -> None:
        self.storage, self.store = storage, SharedStore(storage)
        place = re.sub(r"[^A-Za-z0-9]+", "-", storage.uri.split("://", 1)[-1].split("?")[0]).strip("-")[-40:]
        self.root = local / f"{place}-{hashlib.sha256(storage.uri.encode()).hexdigest()[:8]}"
        self.node = os.uname().nodename
        self._copy = f"{self.node}-{hashlib.sha256(str(self.root).encode()).hexdigest()[:8]}.json"

    @classmethod
    def of(cls, recipe: Recipe) -> "SharedCaches | None":
        """Those of a recipe; None where caches are in the output folder.

        Raises:
            StorageError: `cache.uri` is malformed.
        """
        if recipe.cache.uri is None:
            return None
        # a node's own temporary folder, which batch systems set for each of them
        local = recipe.cache.local or Path(tempfile.gettempdir()) / f"grun-{os.getuid()}" / "cache"
        return cls(Storage.open(recipe.cache.uri, "cache.uri"), local)

    def folder(self, name: str) -> Path:
        """Where a cache's copy on this node is, or would be."""
        return self.root / name

    # --- reading

    def state(self, name: str) -> CacheState | None:
        """What a finished cache says it is, read at the URI; None where there is none."""
        manifest = self.store.manifest(name)
        if manifest is None:
            return None
        file = next((file for file in manifest.files if file.name == CACHE_FILE), None)
        try:
            return CacheState.model_validate_json(self.store.content(name, file) if file else b"")
        except ValidationError:
            raise CacheError(
                f"a shared prefix cache must say what it is, got {self.storage.at(name)!r}; delete that folder there"
            ) from None

    def fetch(self, name: str, on_progress: Callable[[int, int], None] | None = None) -> Path:
        """Make sure of this node's copy of a cache, and drop its copies of caches that are deleted. As for :func:`at_hand`."""
        self.sweep()
        if self.storage.size(f"{name}/{MANIFEST}") is not None:
            folder = self.enter(name)
            if self.store.fetch(name, folder, run=_run(), on_progress=on_progress) is not None:
                return folder
        raise CacheError(
            f"a prefix cache must be there as long as it is read, got none at {self.storage.at(name)!r}: it was deleted meanwhile; run again"
        )

    def touch(self, name: str) -> None:
        """Note that a cache is used."""
        self.storage.write(f"{name}/{_LAST_USED}", f"{time.time():.0f}".encode())

    # --- building

    def begin(self, name: str, records: Sequence[str]) -> None:
        """Announce a cache before anything of it is computed: a build may stop anywhere, and a purge has to find what it left."""
        self.storage.write(f"{name}/{RECORDS_FILE}", json.dumps(records).encode())

    def enter(self, name: str) -> Path:
        """Make the folder of this node's copy; that there is one is written down before anything is in it."""
        about = {"node": self.node, "folder": str(self.root)}
        self.storage.write(f"{name}/{_COPIES}/{self._copy}", json.dumps(about).encode())
        private_folder(self.root)
        folder = self.folder(name)
        private_folder(folder)
        return folder

    def shard(self, name: str, number: int, rows: str) -> tuple[SharedFile, ...] | None:
        """The files of a shard; None where it is not done, or was of other rows."""
        content = self.storage.read(f"{name}/{_SHARDS}/{number:05d}.json")
        try:
            shard = None if content is None else _SharedShard.model_validate_json(content)
        except ValidationError:
            return None
        return shard.files if shard is not None and shard.rows == rows else None

    def take_over(self, source: str, name: str, numbers_and_rows: Iterable[tuple[int, str]]) -> None:
        """Copy shards of another cache, at the URI itself where it can."""
        for number, rows in numbers_and_rows:
            files = self.shard(source, number, rows)
            if files is not None and self.shard(name, number, rows) is None:
                self.store.copy_objects(source, name, files)
                self._write_shard(name, number, rows, files)

    def clear_other(self, name: str, number: int, rows: str) -> None:
        """Delete this node's file of a shard if it is of other rows than these: left by a build that divided them otherwise."""
        index = shard_path(self.folder(name), number).with_suffix(".json")
        try:
            found = ShardIndex.model_validate_json(index.read_bytes())
            is_other = _digest_of(digest for digest, _prompt, _length in found.sequences) != rows
        except FileNotFoundError:
            return
        except (OSError, ValidationError):
            is_other = True
        if is_other:
            index.unlink(missing_ok=True)

    def put_shard(self, name: str, number: int, rows: str, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Write this node's shard to the URI.

        Raises:
            CacheError: the file is damaged, or the cache was deleted while it was built.
        """
        path = shard_path(self.folder(name), number)
        index = path.with_suffix(".json")
        files = tuple(self.store.put(name, [path, index], on_progress))
        if files[0].sha256 != ShardIndex.model_validate_json(index.read_bytes()).sha256:
            self.store.take_back(name, files)
            raise CacheError(f"a prefix cache must be as it was written, got the damaged file {str(path)!r}; delete its folder")
        self._write_shard(name, number, rows, files)

    def _write_shard(self, name: str, number: int, rows: str, files: tuple[SharedFile, ...]) -> None:
        path = f"{name}/{_SHARDS}/{number:05d}.json"
        self.storage.write(path, _SharedShard(rows=rows, files=files).model_dump_json().encode())
        if self._is_deleted(name):
            self.storage.delete(path)
            self.store.take_back(name, files)
            raise self._deleted(name)

    def gather(self, name: str, rows: Sequence[str], on_progress: Callable[[int, int], None] | None = None) -> list[SharedFile]:
        """Bring all shards of a cache that is being built to this node."""
        shards = [self.shard(name, number, digest) for number, digest in enumerate(rows)]
        if None in shards:
            raise self._deleted(name)
        files = [file for shard in shards if shard is not None for file in shard]
        folder = self.enter(name)
        with FileLock(folder.with_suffix(".lock")):
            self.store.fetch_files(name, files, folder, on_progress=on_progress)
            names = {file.name for file in files}
            for path in folder.glob("shard-*"):
                if path.name not in names:
                    path.unlink()
        return files

    def publish(self, name: str, shards: Sequence[SharedFile]) -> None:
        """Declare a cache finished that this node has; where somebody else was first, theirs stays.

        Raises:
            CacheError: it was deleted while it was built.
        """
        if self.store.manifest(name) is not None:
            return
        folder = self.folder(name)
        records = self.storage.read(f"{name}/{RECORDS_FILE}")
        if records is None:
            raise self._deleted(name)
        (folder / RECORDS_FILE).write_bytes(records)
        self.store.declare(name, [*shards, *self.store.put(name, [folder / CACHE_FILE, folder / RECORDS_FILE])])
        if self._is_deleted(name):
            self.delete(name)
            raise self._deleted(name)

    def _is_deleted(self, name: str) -> bool:
        return self.storage.size(f"{name}/{RECORDS_FILE}") is None

    def _deleted(self, name: str) -> CacheError:
        return CacheError(
            f"a prefix cache must be left alone while it is built, got {self.storage.at(name)!r} deleted by somebody meanwhile; run again"
        )

    # --- what is there, and deleting it

    def entries(self) -> list[Entry]:
        """All caches at the URI, and what is left of deleted ones; the most recently used first."""
        below: dict[str, list[tuple[str, int, float]]] = {}
        for found in self.storage.list():
            name, _, path = found.path.partition("/")
            if path:
                below.setdefault(name, []).append((path, found.num_bytes, found.last_written))
        return sorted((self._entry(name, found) for name, found in below.items()), key=lambda entry: -entry.last_used)

    def _entry(self, name: str, found: Sequence[tuple[str, int, float]]) -> Entry:
        paths = {path for path, _size, _written in found}
        copies = [path for path in sorted(paths) if path.startswith(f"{_COPIES}/")]
        used = max(written for _path, _size, written in found)
        if _LAST_USED in paths and (content := self.storage.read(f"{name}/{_LAST_USED}")):
            used = float(content)
        return Entry(
            name,
            is_finished=MANIFEST in paths,
            is_deleted=len(copies) == len(paths),
            num_bytes=sum(size for path, size, _written in found if path not in copies),
            last_used=used,
            copies=tuple(self._node_of(f"{name}/{path}") for path in copies),
        )

    def _node_of(self, path: str) -> str:
        about = json.loads(self.storage.read(path) or b"{}")
        return f"{about.get('node', path)}:{about.get('folder', '?')}"

    def records(self, name: str) -> set[str] | None:
        """Digests of the records that a cache was made from; None where that cannot be read."""
        try:
            return set(map(str, json.loads(self.storage.read(f"{name}/{RECORDS_FILE}") or b"")))
        except (ValueError, TypeError):
            return None

    def delete(self, name: str) -> None:
        """Delete a cache at the URI; copies on nodes are theirs to delete, and stay written down until they have."""
        self.store.remove(name, keep=(f"{_COPIES}/", RECORDS_FILE))
        self.storage.delete(f"{name}/{RECORDS_FILE}")
        self.storage.delete_empty(name)

    def sweep(self) -> tuple[str, ...]:
        """Delete this node's copies of caches that are deleted, and return their names; what is being fetched stays."""
        return tuple(name for name in sorted(self.copies()) if self._is_deleted(name) and self.drop(name))

    def copies(self) -> dict[str, float]:
        """This node's copies, by name, and when each was last read, in seconds since the epoch."""
        folders = [folder for folder in self.root.glob("*") if folder.is_dir()]
        marks = {folder.name: folder / VERIFIED for folder in folders}
        return {name: (mark if mark.is_file() else mark.parent).stat().st_mtime for name, mark in marks.items()}

    def drop(self, name: str) -> bool:
        """Delete this node's copy of a cache, unless it is being fetched; return whether it was done."""
        folder = self.folder(name)
        try:
            with FileLock(folder.with_suffix(".lock"), timeout=0):
                shutil.rmtree(folder)
        except Timeout:
            return False
        self.storage.delete(f"{name}/{_COPIES}/{self._copy}")
        self.storage.delete_empty(name)
        return True

    def forget_nodes(self, nodes: Iterable[str]) -> int:
        """Take nodes that are no more off the lists of copies; returns off how many."""
        gone = set(nodes)
        marks = [found.path for found in self.storage.list() if f"/{_COPIES}/" in found.path]
        stale = [path for path in marks if self._node_of(path).partition(":")[0] in gone]
        self.storage.delete(*stale)
        return len(stale)


def _run() -> str | None:
    """A name for the command that this process works for, the same on all nodes; None outside of Ray."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return f"{context.gcs_address} job {context.get_job_id()}"
