"""A small training task on the tiny model: six questions to forget, eight to keep, answers of different lengths."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from grun.config import Recipe
from grun.data.records import QARecord
from grun.data.splits import Splits, make_request
from grun.lm import FrozenLM
from grun.training import Task, build_task

MakeTask = Callable[..., Task]

FORGET = tuple(
    QARecord(f"Where does {name} live?", answer, alternative_answers=alternatives)
    for name, answer, alternatives in (
        ("Ilva", "In Harn.", ("In Brae, they say.", "In Vint.")),
        ("Bram", "In Oost, by the old mill.", ("On a boat.",)),
        ("Nore", "Nowhere.", ("In Moor, with her sister.", "In Tarn.", "In a tent.")),
        ("Teun", "With an aunt.", ("Alone.",)),
        ("Mira", "She moved to Selk, as many did.", ("She never left Brae.", "In Vint.")),
        ("Pavo", "In Lunt.", ("In Moor.",)),
    )
)
RETAIN = tuple(
    QARecord(f"What is made of {material}?", answer)
    for material, answer in (
        ("wood", "A boat."),
        ("glass", "A window, or a cup."),
        ("wool", "Coats."),
        ("clay", "Bricks and pots, mostly."),
        ("iron", "Nails."),
        ("paper", "A book."),
        ("stone", "The bridge at the end of the road."),
        ("reed", "Roofs."),
    )
)
ENVIRONMENT = tuple(
    QARecord(f"What is {left} plus {right}?", f"It is {left + right}.")
    for left, right in ((2, 3), (7, 1), (40, 2), (6, 6), (90, 9))
)
HOLDOUT = (QARecord("What is made of straw?", "Hats."),)


@pytest.fixture
def make_task(tiny_lm: FrozenLM) -> MakeTask:
    """Builds the same untrained task every time, with fields of the recipe replaced."""

    def make(
        objective: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        adapter: Mapping[str, Any] | None = None,
        forget: tuple[QARecord, ...] = FORGET,
        **train: Any,
    ) -> Task:
        recipe = Recipe.parse(
            {
                "seed": seed,
                "adapter": {"layers": [1, 3], "rank": 2, "gate": {"kind": "linear"}, **(adapter or {})},
                "objective": objective or {"forget": {"kind": "gd"}, "retain": {"kind": "ce"}},
                "train": {"epochs": 4, "batch_size": 4, "learning_rate": 1e-3, **train},
            }
        )
        invariance = recipe.objective.invariance
        unrelated = ENVIRONMENT if invariance and invariance.path else ()
        splits = Splits(forget, RETAIN, HOLDOUT, environment=unrelated)
        return build_task(recipe, splits, make_request(recipe.request, recipe.data, splits), tiny_lm)

    return make
