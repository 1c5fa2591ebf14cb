"""Cache: list the prefix caches of an output folder and at `cache.uri`, or remove those that nobody has used for a while.

    python pipelines/cache.py [--prune] [--unused-days N] [--output FOLDER] [--cache.uri URI]

A cache holds keys, values and hidden states of the records, those to be forgotten among them; remove it when a request is done.
"""

import pipelines.first  # noqa: F401 - before what takes seconds to import

# isort: split

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grun.config import Recipe
from grun.errors import CacheError
from grun.lm.prefix_cache import CACHE_FILE, CacheSpec, read_probe, read_spec
from pipelines.cache_locks import InUseError, deleting
from pipelines.caching import cache_root
from pipelines.cli import parse_command
from pipelines.console import note, summary
from pipelines.node_copies import copies_left, sweep_nodes
from pipelines.running import run_command
from pipelines.shared_caches import Entry, SharedCaches

__all__ = ["main", "prune", "prune_shared", "stored_caches"]

_DAY = 24 * 3600


@dataclass(frozen=True)
class StoredCache:
    """A cache on disk, finished or not."""

    folder: Path
    spec: CacheSpec | None
    """What it is; None where it was never finished."""
    state: str
    num_bytes: int
    last_used: float
    """Seconds since the epoch."""

    def describe(self) -> str:
        """Say in a line what it is."""
        size = f"{self.num_bytes / 1e6:.1f} MB, {self.state}, last used {_days_since(self.last_used):.1f} days ago"
        if self.spec is None:
            return size
        return (
            f"{size}; {self.spec.num_sequences} sequences, blocks {self.spec.cut + 1}..{self.spec.num_layers - 1} of "
            f"{self.spec.num_layers}, {self.spec.dtype}, base {self.spec.base_digest[:12]}"
        )


def _days_since(when: float) -> float:
    """Days since a time in seconds since the epoch; what another clock, or this one before it was set, puts in the future is now."""
    return max(0.0, time.time() - when) / _DAY


def stored_caches(recipe: Recipe) -> list[StoredCache]:
    """Return the caches of an output folder, the most recently used first.

    Raises:
        CacheError: there is a file where they should be.
    """
    root = cache_root(recipe)
    if root.is_file():
        raise CacheError(f"prefix caches must be in a folder, got the file {str(root)!r}; move it away, or set `output`")
    folders = [folder for folder in root.glob("*") if folder.is_dir()]
    return sorted(map(_look_at, folders), key=lambda cache: -cache.last_used)


def _look_at(folder: Path) -> StoredCache:
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    # opening a finished cache for a run touches its file
    finished = folder / CACHE_FILE
    last_used = max(path.stat().st_mtime for path in ([finished] if finished.is_file() else [*files, folder]))
    try:
        spec, probe = read_spec(folder), read_probe(folder)
    except CacheError:
        return StoredCache(folder, None, "not finished", size, last_used)
    return StoredCache(folder, spec, "in order" if probe.agrees(spec.dtype) else "not usable", size, last_used)


def prune(recipe: Recipe, unused_days: float) -> list[StoredCache]:
    """Remove what nobody has used for so many days, whatever its state, and return it; what is being built or read stays."""
    removed = []
    for cache in stored_caches(recipe):
        if _days_since(cache.last_used) < unused_days:
            continue
        try:
            with deleting(cache.folder):
                shutil.rmtree(cache.folder)
        except InUseError as error:
            note(f"{cache.folder.name} is {error} and stays")
            continue
        removed.append(cache)
    return removed


def prune_shared(recipe: Recipe, shared: SharedCaches, unused_days: float) -> list[Entry]:
    """Delete what no run has asked for in so many days at the URI, with the copies that can be reached; return what was there.

    A copy of this node that it has not read for so long goes too, whoever else reads the cache.
    """
    removed = [entry for entry in shared.entries() if not entry.is_deleted and _days_since(entry.last_used) >= unused_days]
    for entry in removed:
        shared.delete(entry.name)
    for name, last_read in shared.copies().items():
        if _days_since(last_read) >= unused_days:
            shared.drop(name)
    sweep_nodes(recipe)
    return removed


def _describe(shared: SharedCaches, entry: Entry) -> str:
    """Say in a line what is at the URI."""
    copies = f"copies on {', '.join(entry.copies)}" if entry.copies else "no copies"
    if entry.is_deleted:
        return f"deleted; {copies}, to go when a run there next needs a cache"
    state = shared.state(entry.name) if entry.is_finished else None
    fits = "not finished" if state is None else "in order" if state.probe.agrees(state.spec.dtype) else "not usable"
    what = "" if state is None else f"; {state.spec.num_sequences} sequences, base {state.spec.base_digest[:12]}"
    return f"{entry.num_bytes / 1e6:.1f} MB, {fits}, last used {_days_since(entry.last_used):.1f} days ago{what}; {copies}"


def _options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to do")
    group.add_argument("--prune", action="store_true", help="remove what nobody has used for a while, instead of listing all")
    group.add_argument(
        "--unused-days", type=float, default=30.0, metavar="N", help="how long that is; 0 removes all [default: 30]"
    )
    group.add_argument(
        "--gone-nodes",
        metavar="NAME,...",
        help="nodes that are no more, with their disks: their copies of what is at `cache.uri` are counted as deleted",
    )


def _say(verb: str, where: str, num_bytes: int, rows: Mapping[str, str]) -> None:
    summary(f"{verb} {len(rows)} prefix cache(s), {num_bytes / 1e6:.1f} MB, in {where}", rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    recipe, options = parse_command(
        "List the prefix caches of an output folder and at `cache.uri`, or remove old ones.",
        argv,
        extra=_options,
        sections=("cache",),
    )
    shared = SharedCaches.of(recipe)
    if shared is not None:
        shared.storage.check()  # where there is no bucket, nothing is listed either, and no error
    verb = "removed" if options.prune else "found"
    caches = prune(recipe, options.unused_days) if options.prune else stored_caches(recipe)
    size = sum(cache.num_bytes for cache in caches)
    _say(verb, str(cache_root(recipe)), size, {cache.folder.name: cache.describe() for cache in caches})
    if shared is None:
        return 0
    if options.gone_nodes is not None:
        count = shared.forget_nodes(options.gone_nodes.split(","))
        note(f"took {count} cop{'y' if count == 1 else 'ies'} of nodes that are no more off the lists")
    entries = prune_shared(recipe, shared, options.unused_days) if options.prune else shared.entries()
    rows = {entry.name: "removed" if options.prune else _describe(shared, entry) for entry in entries}
    _say(verb, str(recipe.cache.uri), sum(entry.num_bytes for entry in entries), rows)
    if options.prune and (left := copies_left(recipe)):
        note(f"copies of deleted caches are left on {', '.join(left)}, and go when a run there next needs a cache")
    return 0


if __name__ == "__main__":
    run_command(main)
