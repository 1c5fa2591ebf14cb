"""A base on disk, a registry with versions on it, and the parts of a server."""

from collections.abc import Callable
from pathlib import Path

import pytest

from grun.config import Recipe
from grun.lm import FrozenLM, load_frozen_lm
from pipelines.tracking import Tracker
from tests.pipelines.serving.shelf import Shelf


@pytest.fixture(scope="session")
def base(base_folder: Path) -> FrozenLM:
    """The tiny base, as it is loaded from disk."""
    return load_frozen_lm(str(base_folder))


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Recipe:
    """A recipe with its output in the test's own folder."""
    return make_recipe(output=str(tmp_path / "outputs"), serving={"batch_window_ms": 0})


@pytest.fixture
def shelf(recipe: Recipe, base: FrozenLM, tmp_path: Path) -> Shelf:
    """The recipe's own registry, empty."""
    return Shelf(Tracker.open(recipe.tracking, recipe.output), base, tmp_path / "made")
