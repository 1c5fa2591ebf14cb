"""What builds a prefix cache on the cluster, with the whole base in memory. Runs as tasks."""

import json
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

__all__ = ["build_shard", "finish_cache"]


def build_shard(
    recipe: Recipe, base: str, folder: Path, spec: CacheSpec, number: int, examples: Sequence[Example], progress: Path
) -> None:
    """Compute one file of a cache.

    Raises:
        CacheError: the base cannot be fed from a cache.
    """
    lm = loaded_base(recipe, base)
    done = 0

    def on_rows(rows: int) -> None:
        nonlocal done
        done += rows
        progress.write_text(json.dumps({"done": done, "total": len(examples)}), encoding="utf-8")

    with _refusing(lm):
        write_shard(lm, spec, examples, folder, number, batch_size=recipe.cache.batch_size, on_rows=on_rows)


def finish_cache(
    recipe: Recipe, base: str, folder: Path, spec: CacheSpec, probe: Sequence[Example], progress: Path
) -> CacheProbe:
    """Run a few rows both ways, write down how far apart they are, and declare the cache finished.

    Raises:
        CacheError: the base cannot be fed from a cache.
    """
    lm = loaded_base(recipe, base)
    with _refusing(lm):
        found = probe_cache(lm, PrefixCache.open_shards(folder, spec), probe)
    finish(folder, spec, found)
    progress.write_text(json.dumps({"done": 1, "total": 1}), encoding="utf-8")
    return found


@contextmanager
def _refusing(lm: FrozenLM) -> Iterator[None]:
    """A model's own code may fail on a cache in any way; whatever it is, the base cannot be fed like this."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise CacheError(
            f"a base must take keys and values from a cache, got {type(lm.model).__name__}, which fails with {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}; set `cache.mode: off`"
        ) from error
