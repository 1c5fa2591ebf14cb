"""A base on disk, a registry with versions on it, and the parts of a server."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from grun.config import Recipe
from grun.lm import FrozenLM, load_frozen_lm
from pipelines.tracking import Tracker
from tests.pipelines.serving.shelf import Shelf

_numbers = count()


@pytest.fixture(scope="session")
def base(base_folder: Path) -> FrozenLM:
    """The tiny base, as it is loaded from disk."""
    return load_frozen_lm(str(base_folder))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store; it takes seconds to make, so tests share it and each has a model of its own."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    Tracker(uri, "grun", folder / "artifacts")
    return uri


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], tmp_path: Path, store: str) -> Recipe:
    """A recipe with a request, a ledger and an output folder of the test's own."""
    name = f"towns-{next(_numbers)}"
    return make_recipe(
        output=str(tmp_path / "outputs"),
        request={"id": name},
        ledger={"name": name},
        tracking={"uri": store},
        serving={"batch_window_ms": 0},
    )


@pytest.fixture
def shelf(recipe: Recipe, base: FrozenLM, tmp_path: Path) -> Shelf:
    """The registry of the recipe's own model, which is empty."""
    return Shelf(Tracker.open(recipe.tracking, recipe.output), base, tmp_path / "made", recipe.registered_model)
