"""What a sweep tries next: the same, however often it was killed before."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from grun.config import Recipe
from pipelines.entry import FORGETTING, UTILITY
from pipelines.sweep_record import read_trials
from pipelines.sweep_search import TRIAL_KEY, TrialSearch, own_point, study_of
from tune_spaces import SPACES, apply_point, find_space

JOINT = SPACES["joint"]
COUNT = 14
"""More than the trials that Optuna draws at random before it looks at results."""


def recipe_of(**sweep: Any) -> Recipe:
    return Recipe.parse({"name": "search", "sweep": {"num_trials": COUNT, **sweep}})


def end(folder: Path, trial_id: str) -> None:
    """Score a trial by its point."""
    [record] = [record for record in read_trials(folder) if record.trial_id == trial_id]
    rate, weight = record.point["train.learning_rate"], record.point["objective.gate_weight"]
    result = {FORGETTING: abs(rate - 1e-3) * 100, UTILITY: 1 / weight, "probe/score": 0.0}
    record.model_copy(update={"done": True, "result": result}).write(folder / "trials" / trial_id)


def run(recipe: Recipe, folder: Path, count: int, *, sessions: int = 1) -> list[Any]:
    """Try so many points, each scored before the next; a new searcher for each session."""
    tried = []
    for trial in range(count):
        if trial * sessions // count != (trial - 1) * sessions // count:
            search = TrialSearch(recipe, JOINT, folder)
        point = search.suggest("Tune's own id")
        assert isinstance(point, dict)
        end(folder, point[TRIAL_KEY])
        tried.append(point)
    return tried


@pytest.mark.parametrize("searcher", ["optuna", "random"])
def test_a_sweep_that_is_killed_tries_what_it_would_have_tried(tmp_path: Path, searcher: str) -> None:
    recipe = recipe_of(searcher=searcher)
    straight, killed = (run(recipe, tmp_path / str(sessions), COUNT, sessions=sessions) for sessions in (1, 7))
    assert straight == killed
    assert [point.pop(TRIAL_KEY) for point in straight] == [f"{number:05d}" for number in range(1, COUNT + 1)]
    assert len({str(point) for point in straight}) == COUNT
    for folder in ("1", "7"):
        assert TrialSearch(recipe, JOINT, tmp_path / folder).suggest("") == Searcher.FINISHED


def test_optuna_goes_on_from_all_trials_under_their_numbers(tmp_path: Path) -> None:
    recipe = recipe_of()
    run(recipe, tmp_path / "sweep", COUNT - 2)
    left = TrialSearch(recipe, JOINT, tmp_path / "sweep").suggest("")
    assert isinstance(left, dict)
    records = read_trials(tmp_path / "sweep")
    study = study_of(recipe, JOINT, records)
    assert [trial.number + 1 for trial in study.trials] == [record.number for record in records]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * (COUNT - 2) + [TrialState.RUNNING]
    assert [trial.params for trial in study.trials] == [record.point for record in records]
    # of another past follows another suggestion: this one was no draw at random
    assert TrialSearch(recipe, JOINT, tmp_path / "sweep")._point(COUNT, records) != TrialSearch(
        recipe, JOINT, tmp_path / "sweep"
    )._point(COUNT, [record.model_copy(update={"done": False}) for record in records])


def test_what_was_begun_comes_first_and_what_is_done_never_again(tmp_path: Path) -> None:
    recipe = recipe_of(searcher="random")
    search = TrialSearch(recipe, JOINT, tmp_path)
    first, second, third = (search.suggest("") for _ in range(3))
    assert isinstance(second, dict)
    end(tmp_path, second[TRIAL_KEY])
    again = TrialSearch(recipe, JOINT, tmp_path)
    assert [again.suggest(""), again.suggest("")] == [first, third]
    fourth = again.suggest("")
    assert isinstance(fourth, dict)
    assert fourth[TRIAL_KEY] == "00004"


def test_a_small_space_is_swept_whole(tmp_path: Path) -> None:
    ranks = SPACES["reft_rank"]
    search = TrialSearch(recipe_of(), ranks, tmp_path)
    points = [search.suggest("") for _ in range(6)]
    assert [point["adapter.rank"] for point in points[:5] if isinstance(point, dict)] == [1, 2, 4, 8, 16]
    assert points[5] == Searcher.FINISHED
    only = TrialSearch(recipe_of(), SPACES["gate_threshold"], tmp_path / "one")
    assert [only.suggest(""), only.suggest("")] == [{TRIAL_KEY: "00001"}, Searcher.FINISHED]


def test_a_guided_sweep_begins_with_the_recipe_itself(tmp_path: Path) -> None:
    recipe, space = Recipe.parse({"train": {"learning_rate": 0.0015}}), find_space("joint")
    own = own_point(recipe, space)
    assert own is not None
    assert apply_point(recipe, own) == recipe.replace({"adapter": {"relative_depths": list(recipe.adapter.relative_depths)}})
    search = TrialSearch(recipe, space, tmp_path)
    first, second = search.suggest("a"), search.suggest("b")
    assert first == {**own, TRIAL_KEY: "00001"}
    assert {**second, TRIAL_KEY: "00001"} != first
    # where the space does not hold it, the search begins as it would
    assert own_point(recipe.replace({"train": {"learning_rate": 1.0}}), space) is None


@pytest.mark.parametrize("searcher", ["optuna", "random"])
def test_no_point_is_tried_twice_while_others_are_left(searcher: str, tmp_path: Path) -> None:
    space = find_space("reft_rank")
    recipe = Recipe.parse({"sweep": {"searcher": searcher, "num_trials": int(space.size) - 1}})
    search = TrialSearch(recipe, space, tmp_path)
    points = [search.suggest(str(number)) for number in range(recipe.sweep.num_trials)]
    assert len({point["adapter.rank"] for point in points}) == recipe.sweep.num_trials
