"""The whole base in the process of a helper task, which keeps it: a sweep loads it once a process and not once a task."""

from functools import lru_cache

from grun.config import ModelConfig, Recipe
from grun.lm import FrozenLM, load_frozen_lm, variant_of

__all__ = ["loaded_base"]


def loaded_base(recipe: Recipe, model: str) -> FrozenLM:
    """Return a model of the recipe, its base or the retain-only one, stored as the recipe says.

    Raises:
        ModelError: it cannot be loaded, or cannot be stored like that.
    """
    return _load(model, recipe.model, recipe.evaluation.use_gpu)


@lru_cache(maxsize=2)
def _load(model: str, config: ModelConfig, use_gpu: bool) -> FrozenLM:
    device = "cuda" if use_gpu else "cpu"
    lm = load_frozen_lm(model, revision=config.revision, dtype=config.dtype, pad_token=config.pad_token, device=device)
    return lm if config.variant is None else variant_of(lm, config.variant)
