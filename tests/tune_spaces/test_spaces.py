"""Search spaces: every point is a recipe that trains, and no path is one that no recipe has."""

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray import tune
from ray.tune.search.sample import Categorical

import tune_spaces
from grun.config import Recipe
from grun.errors import ConfigError
from grun.interventions import check_fits
from grun.objectives import read_layer
from tune_spaces import SPACES, Space, apply_point, choice, find_space
from tune_spaces.layer_positions import PLACEMENTS
from tune_spaces.reft_rank import RANKS

SAMPLES = 300


def categories(space: Space, path: str) -> list[Any]:
    dimension = space.dimensions[path]
    assert isinstance(dimension, Categorical)
    return list(dimension.categories)


def points(space: Space) -> Iterator[dict[str, Any]]:
    """The whole of a finite space; many draws from a continuous one."""
    if math.isfinite(space.size):
        for values in itertools.product(*(categories(space, path) for path in space.dimensions)):
            yield dict(zip(space.dimensions, values, strict=True))
        return
    random.seed(0)
    np.random.seed(0)  # what Ray's samplers draw from
    for _ in range(SAMPLES):
        yield {path: dimension.sample() for path, dimension in space.dimensions.items()}


def test_the_table_holds_a_space_for_every_file() -> None:
    folder = Path(tune_spaces.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "space"}
    assert SPACES.keys() == files
    assert all(space.name == name and space.title for name, space in SPACES.items())
    assert Recipe().sweep.space in SPACES


def test_a_space_is_found_by_name_or_refused_with_the_near_miss() -> None:
    assert find_space("joint") is SPACES["joint"]
    with pytest.raises(
        ConfigError, match=r"`sweep\.space` must be one of \[.*\], got 'reft_ranks' \(did you mean `reft_rank`\?\)"
    ):
        find_space("reft_ranks")


@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize("num_layers", [8, 32])
def test_every_point_is_a_recipe_that_fits_the_base(name: str, num_layers: int) -> None:
    hidden_size = Recipe().model.taught.hidden_size
    tried = list(points(SPACES[name]))
    for point in tried:
        recipe = apply_point(Recipe(), point)
        layers = check_fits(recipe.adapter, hidden_size=hidden_size, num_layers=num_layers)
        assert len(layers) == len(recipe.adapter.relative_depths)
        assert read_layer(recipe.objective, layers, num_layers=num_layers) is None  # no term of the default reads a block
    assert len(tried) == min(SPACES[name].size, SAMPLES)


@pytest.mark.parametrize("name", sorted(SPACES))
def test_a_point_changes_exactly_the_fields_it_names(name: str) -> None:
    space = SPACES[name]
    space.check(Recipe())
    before = Recipe().model_dump(mode="json")
    for point in itertools.islice(points(space), 20):
        after = apply_point(Recipe(), point).model_dump(mode="json")
        for path, value in point.items():
            *parents, leaf = path.split(".")
            section, old = after, before
            for part in parents:
                section, old = section[part], old[part]
            expected = yaml.safe_load(value) if isinstance(value, str) else value
            assert section[leaf] == expected
            section[leaf] = old[leaf]
        assert after == before


@pytest.mark.parametrize("name", sorted(SPACES))
def test_thresholds_lie_within_zero_and_one_and_rise(name: str) -> None:
    thresholds = SPACES[name].thresholds
    assert all(0 < threshold < 1 for threshold in thresholds)
    assert list(thresholds) == sorted(set(thresholds))
    assert not any("threshold" in path for path in SPACES[name].dimensions)  # none of them may cost a training run


def test_no_two_points_of_a_finite_space_are_the_same() -> None:
    for space in SPACES.values():
        if math.isfinite(space.size):
            tried = [tuple(point.items()) for point in points(space)]
            assert len(set(tried)) == len(tried)
    assert len(set(RANKS)) == len(RANKS)


@pytest.mark.parametrize("num_layers", [4, 8, 32])
def test_relative_depths_are_blocks_of_any_model(num_layers: int) -> None:
    resolved = []
    for placement in PLACEMENTS:
        adapter = apply_point(Recipe(), {"adapter.relative_depths": placement}).adapter
        layers = adapter.resolve_layers(num_layers)
        assert list(layers) == sorted(set(layers))
        assert 0 <= layers[0] <= layers[-1] < num_layers
        # a model of four blocks is too shallow to tell neighbouring depths apart
        assert len(layers) == len(placement) or num_layers == 4
        resolved.append(layers)
    assert len(set(resolved)) == len(PLACEMENTS) or num_layers == 4


def test_the_first_placement_is_the_papers() -> None:
    adapter = apply_point(Recipe(), {"adapter.relative_depths": PLACEMENTS[0]}).adapter
    assert adapter.resolve_layers(32) == (20, 25, 31)


def test_lists_become_text_and_come_back_as_they_were() -> None:
    texts = categories(SPACES["layer_positions"], "adapter.relative_depths")
    assert all(isinstance(text, str) for text in texts)
    depths = [apply_point(Recipe(), {"adapter.relative_depths": text}).adapter.relative_depths for text in texts]
    assert depths == [tuple(placement) for placement in PLACEMENTS]


@pytest.mark.parametrize("value", [3, 0.25, True, "mlp_3"])
def test_scalars_stay_what_they_are(value: object) -> None:
    assert choice(value).categories == [value]


def test_the_size_counts_combinations() -> None:
    finite = Space("s", "t", {"adapter.rank": choice(1, 2, 4), "adapter.gate.kind": choice("linear", "mlp_3")})
    assert finite.size == 6
    assert finite.grid() == {
        "adapter.rank": {"grid_search": [1, 2, 4]},
        "adapter.gate.kind": {"grid_search": ["linear", "mlp_3"]},
    }
    assert SPACES["gate_threshold"].size == 1  # one trained adapter, scored at every threshold
    assert Space("s", "t", {"train.learning_rate": tune.loguniform(1e-3, 1e-2), "adapter.rank": choice(1, 2)}).size == math.inf


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("adaptor.rank", r"`adaptor\.rank` in space `mine`: the recipe has no field `adaptor` \(did you mean `adapter`\?\)"),
        ("adapter.rnak", r"`adapter\.rnak` in space `mine`: adapter has no field `rnak` \(did you mean `rank`\?\)"),
        ("adapter.gate.knid", r"adapter\.gate has no field `knid` \(did you mean `kind`\?\)"),
        ("objective.forget.betta", r"objective\.forget has no field `betta` \(did you mean `beta`\?\)"),
        ("adapter.rank.deeper", r"adapter\.rank has no field `deeper`"),
    ],
)
def test_a_path_that_no_recipe_has_is_refused_with_the_near_miss(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message + r".*; correct the path$"):
        Space("mine", "t", {path: choice(1)}).check(Recipe())


def test_a_field_of_any_kind_of_a_union_may_be_varied() -> None:
    space = Space("mine", "t", {"objective.forget.beta": choice(0.1, 0.5), "objective.forget.weight": choice(1.0)})
    space.check(Recipe())
    assert space.size == 2


def test_a_threshold_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"adapter\.gate_threshold.*less than or equal to 1.*got 1\.5"):
        Space("mine", "t", thresholds=(0.5, 1.5)).check(Recipe())


def test_a_point_that_is_no_recipe_is_refused_with_its_values() -> None:
    with pytest.raises(ConfigError, match=r"with \{'adapter': \{'rank': 0\}\} is not a valid recipe: `adapter\.rank`.*got 0"):
        apply_point(Recipe(), {"adapter.rank": 0})


def test_variants_are_the_placements_and_objectives_of_a_space_and_nothing_else() -> None:
    recipe = Recipe()
    placements = {variant.adapter.resolve_layers(32) for variant in SPACES["joint"].variants(recipe)}
    assert placements == {tuple(int(depth * 32) for depth in depths) for depths in PLACEMENTS}
    assert {variant.adapter.rank for variant in SPACES["joint"].variants(recipe)} == {recipe.adapter.rank}
    assert SPACES["reft_rank"].variants(recipe) == [recipe]
    space = Space("x", "y", {"objective.forget.kind": choice("gd", "npo"), "adapter.layers": choice([1], [2, 3])})
    found = {(variant.objective.forget.kind, variant.adapter.layers) for variant in space.variants(recipe)}
    assert found == {("gd", (1,)), ("gd", (2, 3)), ("npo", (1,)), ("npo", (2, 3))}


@pytest.mark.parametrize("name", SPACES)
def test_a_recipe_without_gates_has_nothing_to_sweep(name: str) -> None:
    with pytest.raises(ConfigError, match=r"chooses among gates .*, got `adapter\.gate\.kind` 'none'.*name a gate"):
        SPACES[name].check(Recipe.parse({"adapter": {"gate": {"kind": "none"}}}))
