"""The table of compared systems: its arithmetic by hand, its grids, and one run at toy size."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grun.config import NoGateConfig, Recipe
from pipelines.benchmark import main
from pipelines.benchmarks.quality import Choice
from pipelines.benchmarks.quality_report import comparisons, quality_figure, quality_table
from pipelines.benchmarks.quality_systems import OBJECTIVES, SYSTEMS, Point, Trained

pytest.importorskip("peft")

CELLS = [(system, objective) for objective in OBJECTIVES for system in SYSTEMS]


def record(system: str, objective: str | None = "gd", **values: Any) -> dict[str, Any]:
    below = {
        "forget_rouge_unseen": 0.2,
        "utility_ratio": 0.9,
        "trained_parameters": 10,
        "cpu_seconds": 4.0,
        "cache_cpu_seconds": 1.0,
    }
    return {"system": system, "title": system.upper(), "objective": objective, **below, **values}


class TestReport:
    def test_grun_is_set_against_each_other_system_under_the_same_objective(self) -> None:
        records = [
            record("base", None),
            record("grun", "gd", utility_ratio=0.96),
            record("lora", "gd", utility_ratio=0.8, forget_rouge_unseen=0.0, cpu_seconds=20.0, cache_cpu_seconds=0.0),
            record("grun", "npo", utility_ratio=0.5),
            record("lora", "npo", utility_ratio=1.0),
        ]
        rows = {row.name: row for row in comparisons("quality", records)}
        assert len(rows) == 8
        utility = rows["quality.gd.utility_ratio.grun_over_lora"]
        assert (utility.value, utility.baseline) == (0.96, 0.8)
        assert utility.ratio == pytest.approx(1.2)
        assert rows["quality.npo.utility_ratio.grun_over_lora"].ratio == 0.5
        assert rows["quality.gd.forget_rouge_unseen.grun_over_lora"].ratio is None  # nothing is left to compare with
        assert rows["quality.gd.cpu.grun_over_lora"].ratio == 0.25  # 4 s and 1 s for the cache, against 20 s

    def test_the_table_leaves_empty_what_a_row_does_not_have(self) -> None:
        text = quality_table(
            [record("base", None, steps=None), record("grun", gate_threshold=0.7, trained_share=0.00123, steps=80)]
        )
        heading, base, grun = text.splitlines()
        assert heading.split()[:3] == ["system", "objective", "rate"]
        assert base.split() == ["BASE", "0.200", "0.900", "10", "4.0", "1.0"]
        assert grun.split() == ["GRUN", "gd", "0.7", "0.200", "0.900", "10", "0.12%", "80", "4.0", "1.0"]

    def test_the_figure_tells_systems_by_marker_and_objectives_by_colour(self) -> None:
        records = [record("base", None, utility_ratio=1.0), *(record(system, objective) for system, objective in CELLS)]
        [axes] = quality_figure("all", records).axes
        points = axes.get_lines()[: len(records)]
        assert len({(point.get_marker(), point.get_color()) for point in points}) == len(records)
        assert np.asarray(points[0].get_ydata()).tolist() == [1.0]


class TestGrids:
    @pytest.mark.parametrize(("name", "objective"), CELLS)
    def test_every_point_is_a_valid_recipe_of_its_system(self, name: str, objective: str) -> None:
        system, base = SYSTEMS[name], Recipe.parse({"train": {"num_workers": 1, "epochs": 7}})
        points = system.points(objective)
        assert len(set(points)) == len(points) >= 3
        for point in points:
            recipe = system.recipe(base, objective, point, steps_per_epoch=4)
            assert recipe.objective.forget.kind == objective
            assert recipe.objective.forget.weight == point.forget_weight
            assert recipe.objective.retain.weight == (2.0 if objective == "gd" else 1.0)
            assert recipe.train.learning_rate == point.learning_rate
            changes_the_base = name in ("lora", "full")
            assert recipe.train.epochs == (2 if changes_the_base else 7)
            assert (recipe.train.warmup_steps, recipe.train.weight_decay) == ((4, 0.01) if changes_the_base else (0, 0.0))
            assert isinstance(recipe.adapter.gate, NoGateConfig) == (name == "loreft")

    @pytest.mark.parametrize(("name", "objective"), CELLS)
    def test_a_thin_grid_is_a_part_of_the_whole(self, name: str, objective: str) -> None:
        whole, thin = (SYSTEMS[name].points(objective, thin=thin) for thin in (False, True))
        assert len(thin) == 2
        assert set(thin) < set(whole)

    def test_the_published_weight_of_npo_is_tried_where_it_was_published(self) -> None:
        for name, weights in {"grun": {1.0}, "loreft": {1.0}, "lora": {0.1375, 1.0}, "full": {0.1375, 1.0}}.items():
            assert {point.forget_weight for point in SYSTEMS[name].points("npo")} == weights


def chosen(offers: Sequence[tuple[Point, float | None, float]]) -> tuple[Point | None, float | None]:
    choice = Choice()
    for point, threshold, score in offers:
        choice.offer(point, threshold, Trained(None, 1, 1, 1.0), 0.0, 0.0, score)  # type: ignore[arg-type] # what was trained plays no part
    assert len(choice.tried) == len(offers)
    return choice.point, choice.threshold


def test_the_best_score_wins_and_a_tie_goes_to_the_higher_threshold_of_the_same_training() -> None:
    slow, fast = Point(1e-3, 1.0, 4), Point(1e-2, 1.0, 4)
    assert chosen([(slow, 0.3, 0.5), (slow, 0.5, 0.7), (slow, 0.9, 0.6), (fast, 0.3, 0.65)]) == (slow, 0.5)
    assert chosen([(slow, 0.3, 0.5), (slow, 0.5, 0.5), (slow, 0.9, 0.4)]) == (slow, 0.5)
    assert chosen([(slow, None, 0.5), (fast, None, 0.5)]) == (slow, None)


@pytest.mark.slow  # 24 trainings and as many scorings, if small ones
def test_the_whole_table_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["quality", "--tiny", "--output", str(tmp_path)]
    assert main(argv) == 0
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    values = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))
    base, twin, *records = values["records"]
    assert (base["system"], base["utility_ratio"], twin["system"]) == ("base", 1.0, "twin")
    assert [(row["system"], row["objective"]) for row in records] == CELLS
    assert len(values["rows"]) == 4 * 9
    # 4 blocks 64 wide, edited at depths 20/32, 25/32 and 31/32: blocks 2 and 3
    adapter = 2 * (4 * 64 + 4 + 64 * 4)
    gate = (64 * 256 + 256) + (256 * 64 + 64) + (64 + 1)
    counts = {"grun": adapter + 2 * gate, "loreft": adapter, "full": values["workload"]["base_parameters"]}
    for row in records:
        is_adapter, best = row["system"] in ("grun", "loreft"), max(tried["score"] for tried in row["tried"])
        [*tied] = [tried for tried in row["tried"] if tried["score"] == best]
        point = {key: row[key] for key in ("learning_rate", "forget_weight", "rank", "gate_threshold")}
        assert any(tried.items() >= point.items() for tried in tied)
        assert len(row["tried"]) == (2 * 4 if row["system"] == "grun" else 2)
        assert row["trained_parameters"] == counts.get(row["system"], row["trained_parameters"])
        assert row["trained_share"] == row["trained_parameters"] / counts["full"]
        assert row["steps"] == 2  # one epoch over 20 rows, 16 at a time
        assert (row["cache_cpu_seconds"] > 0) == is_adapter
        assert (row["false_open_rate"] is None) == (row["system"] != "grun")
        assert row["cpu_seconds"] > 0
        assert 0 <= row["forget_rouge_unseen"] <= 1
        assert row["forget_quality"] is not None
    assert "full fine-tuning  idk" in capsys.readouterr().out
    # again: every row is read back, its times included, and nothing is trained
    assert main(argv) == 0
    assert json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))["records"] == values["records"]
