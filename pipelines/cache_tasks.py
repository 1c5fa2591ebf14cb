"""What builds a prefix cache on the cluster, with the whole base in memory. Runs as tasks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from grun.config import Recipe
from grun.data.prompts import Example
from grun.errors import CacheError
from grun.lm import FrozenLM, PrefixCache
from grun.lm.cache_build import finish, probe_cache, write_shard
from grun.lm.prefix_cache import CacheProbe, CacheSpec
from pipelines.loaded import loaded_base
from pipelines.shared_caches import SharedCaches, rows_digest
from pipelines.shortage import is_shortage
from pipelines.task_progress import tell_progress
from pipelines.transfers import reporting

__all__ = ["build_shard", "finish_cache"]


def build_shard(
    recipe: Recipe, base: str, folder: Path, spec: CacheSpec, number: int, examples: Sequence[Example], progress: Path
) -> None:
    """Compute one file of a cache, unless it is there; with `cache.uri`, in this node's own folder, and write it there.

    Raises:
        CacheError: the base cannot be fed from a cache.
        StorageError: what is at `cache.uri` cannot be reached.
    """
    shared, name, rows = SharedCaches.of(recipe), spec.digest, rows_digest(examples)
    if shared is not None:
        if shared.shard(name, number, rows) is not None:
            return
        folder = shared.enter(name)
        shared.clear_other(name, number, rows)
    lm = loaded_base(recipe, base)
    computed = 0
    share = 1.0 if shared is None else 0.5  # the other half is writing it there

    def tell(done: float) -> None:
        tell_progress(progress, done, 1)

    def on_rows(count: int) -> None:
        nonlocal computed
        computed += count
        tell(share * computed / len(examples))

    with _refusing(lm):
        write_shard(lm, spec, examples, folder, number, batch_size=recipe.cache.batch_size, on_rows=on_rows)
    if shared is not None:
        shared.put_shard(name, number, rows, lambda done, total: tell(0.5 + 0.5 * done / max(1, total)))


def finish_cache(
    recipe: Recipe, base: str, folder: Path, spec: CacheSpec, probe: Sequence[Example], rows: Sequence[str], progress: Path
) -> CacheProbe:
    """Run a few rows both ways, write down how far apart they are, and declare the cache finished.

    Args:
        rows: digests of the rows of its shards, in order (:func:`pipelines.shared_caches.rows_digest`).

    Raises:
        CacheError: the base cannot be fed from a cache.
        StorageError: what is at `cache.uri` cannot be reached.
    """
    shared = SharedCaches.of(recipe)
    files = []
    if shared is not None:
        with reporting(recipe, f"prefix cache {spec.digest}") as on_progress:
            files = shared.gather(spec.digest, rows, on_progress)
        folder = shared.folder(spec.digest)
    lm = loaded_base(recipe, base)
    with _refusing(lm):
        found = probe_cache(lm, PrefixCache.open_shards(folder, spec), probe)
    finish(folder, spec, found)
    if shared is not None:
        shared.publish(spec.digest, files)
    tell_progress(progress, 1, 1)
    return found


@contextmanager
def _refusing(lm: FrozenLM) -> Iterator[None]:
    """A model's own code may fail on a cache in any way; whatever it is, the base cannot be fed like this."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        if is_shortage(error):  # any base would have failed
            raise
        raise CacheError(
            f"a base must take keys and values from a cache, got {type(lm.model).__name__}, which fails with {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}; set `cache.mode: off`"
        ) from error
