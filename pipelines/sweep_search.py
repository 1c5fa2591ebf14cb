"""Which point a trial of a sweep tries: a function of the sweep's seed, the trial's number and the trials before it.

Nothing is remembered from one suggestion to the next but what stands in the folders of the trials. So a sweep that was killed,
wherever that was, goes on with the points that it would have tried. A suggestion is in its trial's folder before Tune hears of it.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import yaml
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Float

from grun.config import Recipe
from pipelines.entry import FORGETTING, UTILITY
from pipelines.sweep_record import TrialRecord, read_trials
from tune_spaces import Space

__all__ = ["TRIAL_KEY", "TrialSearch", "num_trials", "own_point", "study_of"]

TRIAL_KEY = "trial"
"""Key of the trial's id beside its point."""

_ATTEMPTS = 50
"""Draws of a point until one is new."""


def num_trials(recipe: Recipe, space: Space) -> int:
    """How many trials are trained: a space with fewer points than asked for is swept whole."""
    return int(min(recipe.sweep.num_trials, space.size))


class TrialSearch(Searcher):
    """Gives Tune the trials of a sweep that have not ended: first those that were begun before, then new ones.

    Args:
        folder: of the sweep.
    """

    def __init__(self, recipe: Recipe, space: Space, folder: Path) -> None:
        super().__init__()
        self.recipe = recipe
        self.space = space
        self.folder = folder
        self.begun = deque(record for record in read_trials(folder) if not record.done)

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 - Tune's own id, which is another one in each session
        """The next point, with the id of its trial; `Searcher.FINISHED` after the last."""
        record = self.begun.popleft() if self.begun else self._new()
        return Searcher.FINISHED if record is None else {**record.point, TRIAL_KEY: record.trial_id}

    def _new(self) -> TrialRecord | None:
        before = read_trials(self.folder)
        number = len(before) + 1
        if number > num_trials(self.recipe, self.space):
            return None
        record = TrialRecord(trial_id=f"{number:05d}", number=number, point=self._point(number, before))
        folder = self.folder / "trials" / record.trial_id
        folder.mkdir(parents=True, exist_ok=True)
        record.write(folder)
        return record

    def _point(self, number: int, before: Sequence[TrialRecord]) -> dict[str, Any]:
        dimensions, config = self.space.dimensions, self.recipe.sweep
        if num_trials(self.recipe, self.space) >= self.space.size:
            grid = product(*(cast(Categorical, domain).categories for domain in dimensions.values()))
            return dict(zip(dimensions, list(grid)[number - 1], strict=True))
        own = own_point(self.recipe, self.space) if config.searcher == "optuna" and number == 1 else None
        if own is not None:
            return own
        tried = [record.point for record in before]
        draws = (self._drawn(number, before, attempt) for attempt in range(_ATTEMPTS))
        first = next(draws)
        # a trial that repeats another is lost; where a space is nearly used up, one is taken all the same
        return next((point for point in chain([first], draws) if point not in tried), first)

    def _drawn(self, number: int, before: Sequence[TrialRecord], attempt: int) -> dict[str, Any]:
        dimensions = self.space.dimensions
        if self.recipe.sweep.searcher == "random":
            generator = np.random.default_rng(_entropy(self.recipe, number, attempt))
            return {path: _plain(domain.sample(random_state=generator)) for path, domain in dimensions.items()}
        study = study_of(self.recipe, self.space, before, attempt=attempt)
        return dict(study.ask(OptunaSearch.convert_search_space(dict(dimensions))).params)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """How a trial ended stands in its folder."""

    def save(self, checkpoint_path: str) -> None:
        """What Tune keeps of a sweep is never read."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""
        raise NotImplementedError(checkpoint_path)


def _entropy(recipe: Recipe, number: int, attempt: int) -> list[int]:
    """What a draw for a trial is seeded with; further attempts leave the first as it is."""
    return [recipe.sweep.seed, number, *([attempt] if attempt else [])]


def own_point(recipe: Recipe, space: Space) -> dict[str, Any] | None:
    """The recipe's own values of a space's dimensions; None where the space does not hold them.

    A guided search begins with it: somebody has chosen these values, and no sweep should end with less than they give.
    """
    values, point = recipe.model_dump(mode="json"), {}
    for path, domain in space.dimensions.items():
        value: Any = values
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(domain, Categorical):
            found = [one for one in domain.categories if (yaml.safe_load(one) if isinstance(one, str) else one) == value]
        else:
            low, high = cast(Float, domain).lower, cast(Float, domain).upper
            found = [value] if isinstance(value, int | float) and low <= value <= high else []
        if not found:
            return None
        point[path] = found[0]
    return point


def study_of(recipe: Recipe, space: Space, trials: Sequence[TrialRecord], *, attempt: int = 0) -> optuna.Study:
    """Optuna's study of the trials so far, under their numbers (from 0), ready to be asked for the next one.

    Args:
        attempt: another one makes another suggestion of the same trials.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = np.random.SeedSequence(_entropy(recipe, len(trials) + 1, attempt)).generate_state(1)[0]
    study = optuna.create_study(
        study_name=recipe.name,
        directions=["minimize", "maximize"],
        # a seed for each trial: the state of a sampler would have to be kept, and to be the same after every loss
        sampler=optuna.samplers.TPESampler(seed=int(seed)),
    )
    distributions = OptunaSearch.convert_search_space(dict(space.dimensions))
    for record in trials:
        values = [record.result[FORGETTING], record.result[UTILITY]] if record.done else None
        state = optuna.trial.TrialState.COMPLETE if record.done else optuna.trial.TrialState.RUNNING
        study.add_trial(optuna.create_trial(state=state, params=record.point, distributions=distributions, values=values))
    return study


def _plain(value: Any) -> Any:
    """A number of numpy's as one of Python's, which JSON knows."""
    return value.item() if isinstance(value, np.generic) else value
