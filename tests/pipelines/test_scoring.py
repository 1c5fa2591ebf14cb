"""Scoring on a tiny base: the base's own report, and an adapter that never opens beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from grun.adapters import AdapterCard, save_adapter
from grun.config import Recipe
from grun.errors import ModelError
from grun.interventions import build_adapter
from grun.lm import load_frozen_lm
from pipelines.prepared import Prepared, plan, write_prepared
from pipelines.scoring import report_base, score_adapter, score_reference
from pipelines.sweep import check_utility


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Recipe:
    return make_recipe(output=str(tmp_path / "outputs"))


@pytest.fixture
def prepared(recipe: Recipe) -> Prepared:
    prepared = plan(recipe)
    write_prepared(prepared)
    score_reference(recipe, prepared.folder, prepared.base)
    return prepared


def closed_adapter(recipe: Recipe, base: str, folder: Path) -> Path:
    """An adapter whose gates open for nothing."""
    lm = load_frozen_lm(base)
    adapter = build_adapter(recipe.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=0)
    with torch.no_grad():
        for _layer, intervention in adapter:
            for parameter in intervention.gate.parameters():
                parameter.zero_()
            next(p for p in intervention.gate.parameters() if p.shape == (1,)).fill_(-50.0)
    card = AdapterCard(
        adapter=recipe.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, base_name=base, base_digest=lm.info.digest
    )
    return save_adapter(adapter, card, folder)


def test_an_adapter_that_never_opens_is_reported_as_the_base(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    adapter = closed_adapter(recipe, prepared.base, tmp_path / "adapter")
    reports = score_adapter(recipe, prepared.folder, prepared.base, None, adapter, tmp_path / "scores", [0.5])
    base, with_adapter = report_base(recipe, prepared), reports["0.5"]
    assert with_adapter.value("gate/forget_open_rate") == 0
    assert base.base_digest == with_adapter.base_digest
    shared = {metric.name: metric for metric in base.metrics if metric.name != "model_utility_ratio"}
    assert {"forget/probability", "forget_unseen/rouge_l_recall", "retain/truth_ratio_grun"} <= shared.keys()
    assert {name: with_adapter[name] for name in shared} == shared


@pytest.mark.parametrize("part", ["validation", "test"])
def test_the_base_is_reported_on_the_rows_that_the_recipe_names(recipe: Recipe, prepared: Prepared, part: str) -> None:
    whole, half = report_base(recipe, prepared), report_base(recipe.replace({"evaluation": {"part": part}}), prepared)
    assert half.part == part
    assert 0 < half["forget_unseen/probability"].num_samples < whole["forget_unseen/probability"].num_samples


def test_a_sweep_refuses_a_base_that_has_no_utility_to_lose(recipe: Recipe, prepared: Prepared) -> None:
    assert report_base(recipe, prepared)["model_utility"].value == 0  # the tiny base is random and says nothing right
    with pytest.raises(ModelError, match="a sweep measures damage against the base's own model utility, which must not be 0"):
        check_utility(recipe, prepared)
