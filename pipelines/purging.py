"""Where else the text of a request is: in prepared folders and prefix caches, its own and those of other requests.

Requests are kept apart from each other in training, so one's records are among the others' data. They are found by the digests
of records, not by the names of folders. What cannot be read is taken for something that has them: it can be made anew.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from grun.config import Recipe
from grun.data.records import read_jsonl
from grun.errors import DataError, LedgerError
from grun.ledger import RequestState
from grun.reading import parse_json, read_text
from pipelines.cache_locks import InUseError, deleting
from pipelines.caching import RECORDS_FILE, cache_root
from pipelines.prepared import prepared_root
from pipelines.shared_caches import SharedCaches
from pipelines.vault import Vault

__all__ = ["Traces", "find_traces", "remove_traces"]


_MAX_BYTES = 2**28
"""Of the files that say what a folder was made from."""


@dataclass(frozen=True)
class Traces:
    """What has any of a request's text, besides the vault."""

    prepared: tuple[Path, ...]
    """Folders of prepared data."""
    caches: tuple[Path, ...]
    """Folders of prefix caches in the output folder."""
    shared: tuple[str, ...] = ()
    """Names of prefix caches at `cache.uri`."""


def find_traces(recipe: Recipe, vault: Vault, state: RequestState) -> Traces:
    """Look through an output folder, and what is at `cache.uri`, for the records of a request.

    Raises:
        StorageError: what is at `cache.uri` cannot be reached.
    """
    prepared = list(_folders(prepared_root(recipe)))
    own = [folder for folder in prepared if _forget_digest(folder) == state.forget.digest]
    digests = {record.digest for record in vault.read(state)} if vault.holds(state.id) else set()
    for folder in own:
        digests |= _digests(folder / "forget.jsonl") or set()
    return Traces(
        tuple(folder for folder in prepared if folder in own or _prepared_has(folder, digests)),
        tuple(folder for folder in _folders(cache_root(recipe)) if _cache_has(folder, digests)),
        _shared_with(SharedCaches.of(recipe), digests),
    )


def _shared_with(shared: SharedCaches | None, digests: set[str]) -> tuple[str, ...]:
    """Names of the caches at `cache.uri` that have any of some records."""
    if shared is None:
        return ()
    shared.storage.check()  # where there is no bucket, nothing is listed either, and no error
    names = sorted(entry.name for entry in shared.entries() if not entry.is_deleted)
    return tuple(name for name in names if (known := shared.records(name)) is None or known & digests)


def remove_traces(recipe: Recipe, traces: Traces) -> None:
    """Delete them; nothing is deleted while any of the caches in the output folder is being built or read.

    Whoever builds one that is shared is told by the storage that it is gone, and takes back what he has written.

    Raises:
        LedgerError: somebody builds or reads one.
        StorageError: what is at `cache.uri` cannot be reached.
    """
    with ExitStack() as locks:
        for folder in traces.caches:
            try:
                locks.enter_context(deleting(folder))
            except InUseError as error:
                raise LedgerError(
                    f"a purge needs caches that nobody has to do with, got {folder.name}, made from the text to be purged, which is {error}; "
                    "wait for that run"
                ) from None
        for folder in (*traces.caches, *traces.prepared):
            shutil.rmtree(folder)
    shared = SharedCaches.of(recipe)
    if shared is not None:
        for name in traces.shared:
            shared.delete(name)


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.glob("*")) if path.is_dir())


def _forget_digest(folder: Path) -> str | None:
    """Digest of the forget set that a prepared folder was made about."""
    try:
        return str(parse_json(read_text(folder / "request.json", limit=_MAX_BYTES))["forget"]["digest"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _digests(path: Path) -> set[str] | None:
    """Digests of a file's records, or None where it cannot be read."""
    try:
        return {record.digest for record in read_jsonl(path)}
    except DataError:
        return None


def _prepared_has(folder: Path, digests: set[str]) -> bool:
    found = [_digests(path) for path in _record_files(folder)]
    return any(known is None or known & digests for known in found)


def _record_files(folder: Path) -> Iterator[Path]:
    """The files of records in a prepared folder."""
    yield from sorted(folder.glob("*.jsonl"))
    yield from sorted((folder / "utility").glob("*.jsonl"))


def _cache_has(folder: Path, digests: set[str]) -> bool:
    try:
        known = parse_json(read_text(folder / RECORDS_FILE, limit=_MAX_BYTES))
        return not digests.isdisjoint(known)
    except (OSError, ValueError, TypeError):
        return True
