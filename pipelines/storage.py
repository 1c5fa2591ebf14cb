"""Objects on shared storage by URI: S3, Google Cloud, Azure, HDFS or a mounted folder, whatever pyarrow's file systems know.

Credentials and endpoint are those of the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ..., or the node's own role).
Whatever goes wrong there is a `StorageError` that says what to mend.
"""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from pyarrow import fs as arrow_fs

from grun.errors import StorageError

__all__ = ["Storage", "StoredObject"]

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were just moved."""

_BLOCK = 8 << 20
"""Bytes a request."""

_WHOLE_OR_NOTHING = frozenset({"s3", "gcs", "abfs"})
"""File systems where an object is there only when all of it is."""

_REMEDIES = (
    ("NO_SUCH_BUCKET|NoSuchBucket|PERMANENT_REDIRECT", "there is no such bucket", "create it, or correct the name"),
    (
        "ACCESS_DENIED|AccessDenied|INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE|Signature|Forbidden|403|Permission denied|Unauthorized",
        "access is denied",
        "give credentials that may list, read, write and delete there, in the environment of every node",
    ),
    (
        "NETWORK_CONNECTION|REQUEST_TIMEOUT|curlCode|[Tt]imed? ?out|resolve host|Connection refused|SLOW_DOWN|SERVICE_UNAVAILABLE",
        "its server does not answer",
        "check the network and the endpoint (AWS_ENDPOINT_URL)",
    ),
    ("No space left", "it is full", "free space there"),
)


@dataclass(frozen=True)
class StoredObject:
    """An object that is there."""

    path: str
    """Below the folder that was opened."""
    num_bytes: int
    last_written: float
    """Seconds since the epoch, by the storage's clock."""


class Storage:
    """A folder on shared storage.

    Args:
        uri: as it was given, for messages.
        filesystem: what holds it.
        root: the folder on that file system.
        setting: the setting that named it, for messages.
    """

    def __init__(self, uri: str, filesystem: arrow_fs.FileSystem, root: str, setting: str) -> None:
        self.uri, self.root, self.setting = uri, root.rstrip("/"), setting
        self._fs = filesystem
        self._is_object_store = filesystem.type_name in _WHOLE_OR_NOTHING

    @classmethod
    def open(cls, uri: str, setting: str) -> "Storage":
        """Find the file system of a URI; nothing is asked of it yet.

        Raises:
            StorageError: the URI is malformed, or no file system is known for its scheme.
        """
        try:
            filesystem, root = arrow_fs.FileSystem.from_uri(uri)
        except (ValueError, OSError, NotImplementedError) as error:
            raise StorageError(
                f"`{setting}` must be a URI of shared storage, got {uri!r}: {_one_line(error)}; write `s3://bucket/folder`, "
                "`gs://...`, `abfs://...`, `hdfs://...` or `file:///folder`"
            ) from None
        if not root.strip("/"):
            raise StorageError(f"`{setting}` must name a bucket or folder, got {uri!r}; write `s3://bucket/folder`")
        return cls(uri, filesystem, root, setting)

    def at(self, path: str) -> str:
        """An object as people would name it."""
        base, _, query = self.uri.partition("?")
        return f"{base.rstrip('/')}/{path}" + (f"?{query}" if query else "")

    def check(self) -> None:
        """Write, list, read and delete a few bytes, so that what is missing shows before any work.

        Raises:
            StorageError: what is missing.
        """
        path, text = f".check-{uuid.uuid4().hex}", b"written to see whether this can be written, and to be deleted"
        self.write(path, text)
        seen = self.read(path)
        listed = any(found.path == path for found in self.list())
        self.delete(path)
        if seen != text or not listed or self.read(path) is not None:
            raise StorageError(
                f"`{self.setting}` must be storage that gives back what was written, got {self.uri!r}, which does not; name another"
            )

    def list(self, folder: str = "") -> list[StoredObject]:
        """All objects below a folder, by path; none where it is not there."""
        selector = arrow_fs.FileSelector(self._full(folder), recursive=True, allow_not_found=True)
        with self._speaking(f"list {self.at(folder)!r}"):
            found = self._fs.get_file_info(selector)
        objects = [_stored(info, self.root) for info in found if info.type == arrow_fs.FileType.File]
        return sorted(objects, key=lambda found: found.path)

    def size(self, path: str) -> int | None:
        """Size of an object in bytes; None where it is not there."""
        with self._speaking(f"look at {self.at(path)!r}"):
            info = self._fs.get_file_info(self._full(path))
        return info.size if info.type == arrow_fs.FileType.File else None

    def read(self, path: str) -> bytes | None:
        """A small object as a whole; None where it is not there."""
        try:
            return b"".join(self.blocks(path))
        except FileNotFoundError:
            return None

    def blocks(self, path: str) -> Iterator[bytes]:
        """The content of an object, block by block.

        Raises:
            FileNotFoundError: it is not there.
        """
        doing = f"read {self.at(path)!r}"
        with self._speaking(doing, may_be_absent=True):
            stream = self._fs.open_input_stream(self._full(path))
        with stream:
            while True:
                with self._speaking(doing, may_be_absent=True):
                    block = stream.read(_BLOCK)
                if not block:
                    return
                yield block

    def write(self, path: str, content: bytes) -> None:
        """Write a small object, whole or not at all."""
        self._write(path, iter([content]), len(content))

    def upload(self, file: Path, path: str, on_bytes: OnBytes | None = None) -> None:
        """Write a local file as an object, whole or not at all."""
        with file.open("rb") as source:
            self._write(path, iter(lambda: source.read(_BLOCK), b""), file.stat().st_size, on_bytes)

    def copy(self, source: str, target: str) -> None:
        """Copy an object, on the storage itself where it can: S3 does up to 5 GB, and some have no such thing."""
        num_bytes = self.size(source)
        if self._is_object_store and num_bytes is not None and self.size(target) != num_bytes:
            with suppress(OSError, pyarrow.ArrowException):
                self._fs.copy_file(self._full(source), self._full(target))
        if num_bytes is not None and self.size(target) != num_bytes:
            self._write(target, self.blocks(source), num_bytes)

    def delete(self, *paths: str) -> None:
        """Delete objects; those that are not there already are passed over."""
        for path in paths:
            with suppress(FileNotFoundError), self._speaking(f"delete {self.at(path)!r}", may_be_absent=True):
                self._fs.delete_file(self._full(path))

    def delete_empty(self, folder: str) -> None:
        """Remove what is left of a folder without objects, on file systems that have folders."""
        if self._is_object_store or self.list(folder):
            return
        with suppress(OSError, pyarrow.ArrowException):  # gone meanwhile, or somebody has begun to write there
            self._fs.delete_dir(self._full(folder))

    def _write(self, path: str, blocks: Iterator[bytes], num_bytes: int, on_bytes: OnBytes | None = None) -> None:
        full = self._full(path)
        # elsewhere a reader would see a file that is being written
        scratch = full if self._is_object_store else f"{full}.{uuid.uuid4().hex}.tmp"
        doing = f"write {self.at(path)!r}"
        with self._speaking(doing):
            if not self._is_object_store:
                self._fs.create_dir(full.rpartition("/")[0], recursive=True)
            stream = self._fs.open_output_stream(scratch)
        written = 0
        try:
            with self._speaking(doing), stream:
                for block in blocks:
                    stream.write(block)
                    written += len(block)
                    if on_bytes is not None:
                        on_bytes(len(block))
            if written != num_bytes:
                raise StorageError(
                    f"a file must stay as it is while it is uploaded, got {written} bytes of {num_bytes} for {self.at(path)!r}; run again"
                )
            if scratch != full:
                with self._speaking(doing):
                    self._fs.move(scratch, full)
        except BaseException:
            # closing a stream publishes what it has got so far
            with suppress(OSError, pyarrow.ArrowException):
                self._fs.delete_file(scratch)
            raise

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    @contextmanager
    def _speaking(self, doing: str, *, may_be_absent: bool = False) -> Iterator[None]:
        """Say what a failure means; that something is not there is for the caller to judge where it may be so."""
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            if may_be_absent and isinstance(error, FileNotFoundError):
                raise
            reason, remedy = _explain(error)
            raise StorageError(
                f"`{self.setting}` must be storage that can be reached and used, got {self.uri!r}: could not {doing}, as {reason} "
                f"({_one_line(error)}, on {os.uname().nodename}); {remedy}"
            ) from None


def _stored(info: arrow_fs.FileInfo, root: str) -> StoredObject:
    written = info.mtime.timestamp() if info.mtime is not None else 0.0
    return StoredObject(info.path.removeprefix(root).lstrip("/"), info.size, written)


def _explain(error: BaseException) -> tuple[str, str]:
    """What an error of a file system means, and what to do about it."""
    for pattern, reason, remedy in _REMEDIES:
        if re.search(pattern, str(error)):
            return reason, remedy
    return "its file system refuses", "check the URI, the credentials and the endpoint"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
