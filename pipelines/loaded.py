"""The whole base in the process of a helper task, which keeps it: a sweep loads it once a process and not once a task."""

from functools import lru_cache

from grun.config import Recipe
from grun.lm import FrozenLM, load_frozen_lm

__all__ = ["loaded_base"]


def loaded_base(recipe: Recipe, model: str) -> FrozenLM:
    """Return a model of the recipe: its base, or the retain-only one.

    Raises:
        ModelError: it cannot be loaded.
    """
    config = recipe.model
    return _load(model, config.revision, config.dtype, config.pad_token, recipe.evaluation.use_gpu)


@lru_cache(maxsize=2)
def _load(model: str, revision: str | None, dtype: str, pad_token: str | None, use_gpu: bool) -> FrozenLM:
    return load_frozen_lm(model, revision=revision, dtype=dtype, pad_token=pad_token, device="cuda" if use_gpu else "cpu")
