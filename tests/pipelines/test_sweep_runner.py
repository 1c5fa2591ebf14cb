"""How many warm slots a sweep runs on, by what the cluster holds and what the space varies."""

from typing import Any

import pytest
import ray

from grun.config import Recipe
from pipelines.sweep import warm_slots
from tune_spaces import SPACES, Space, choice

JOINT = SPACES["joint"]


def slots(monkeypatch: pytest.MonkeyPatch, have: dict[str, float], space: Space = JOINT, **values: Any) -> int:
    monkeypatch.setattr(ray, "cluster_resources", lambda: have)
    return warm_slots(Recipe.parse(values), space)


@pytest.mark.parametrize(
    ("cpus", "values", "expected"),
    [
        (2, {}, 1),
        (9, {}, 4),
        (9, {"sweep": {"max_concurrent": 3}}, 3),
        (64, {"sweep": {"num_trials": 5}}, 5),
        (16, {"train": {"num_workers": 4, "cpus_per_worker": 2}}, 2),
        (16, {"sweep": {"runner": "nested"}}, 0),
    ],
)
def test_slots_fill_the_cluster(monkeypatch: pytest.MonkeyPatch, cpus: int, values: dict[str, Any], expected: int) -> None:
    assert slots(monkeypatch, {"CPU": cpus}, **values) == expected


@pytest.mark.parametrize(("gpus", "scoring", "expected"), [(8, False, 4), (8, True, 3), (2, False, 1), (2, True, 0)])
def test_slots_leave_a_gpu_to_score_with(monkeypatch: pytest.MonkeyPatch, gpus: int, scoring: bool, expected: int) -> None:
    train = {"num_workers": 2, "use_gpu": True}
    assert slots(monkeypatch, {"CPU": 64, "GPU": gpus}, train=train, evaluation={"use_gpu": scoring}) == expected


def test_a_space_that_varies_the_workers_needs_new_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = Space("x", "y", {"train.num_workers": choice(1, 2), "adapter.rank": choice(1, 2)})
    assert slots(monkeypatch, {"CPU": 8}, space) == 0
    assert "every trial starts workers of its own, as the space varies `train.num_workers`" in capsys.readouterr().err
