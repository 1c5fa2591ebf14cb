"""The verb on a base as it is deployed: an adapter of the full-precision base, scored by the variant's own rows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grun.adapters import digest_adapter
from grun.config import Recipe
from grun.evaluation.report import EvalReport
from pipelines import evaluate
from pipelines.adapter_scoring import score_adapter
from pipelines.evaluate import evaluation_folder
from pipelines.prepared import Prepared, plan, write_prepared
from pipelines.retain_logs import export_path
from pipelines.scoring import reference_path, report_base, score_reference
from tests.pipelines.test_scoring import closed_adapter


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Recipe:
    return make_recipe(output=str(tmp_path / "outputs"))


@pytest.fixture
def prepared(recipe: Recipe) -> Prepared:
    prepared = plan(recipe)
    write_prepared(prepared)
    score_reference(recipe, prepared.folder, prepared.base)
    return prepared


FORMATS: list[dict[str, Any]] = [
    {"quantization": "int8"},
    {"quantization": "int4"},
    {"decomposition": "nf4"},
    {"decomposition": "lowrank_nf4", "decomposition_rounds": 2},
]


@pytest.mark.parametrize("stored", FORMATS, ids=lambda stored: "-".join(map(str, stored.values())))
def test_an_adapter_of_the_full_precision_base_is_scored_on_it_as_deployed(
    recipe: Recipe, prepared: Prepared, tmp_path: Path, stored: dict[str, Any]
) -> None:
    """By the variant's own rows: with closed gates the report is the variant's, not that of the base on disk."""
    adapter = closed_adapter(recipe, prepared.base, tmp_path / "adapter")
    deployed = recipe.replace({"model": stored})
    [report] = score_adapter(
        deployed, prepared.folder, prepared.base, prepared.base, adapter, tmp_path / "scores", [0.5]
    ).values()
    base, own = report_base(recipe, prepared), report_base(deployed, prepared)
    assert (base.base_variant, own.base_variant) == (None, deployed.model.variant and deployed.model.variant.name)
    assert (report.base_variant, report.base_digest) == (own.base_variant, base.base_digest)
    assert report.value("forget/probability") == own.value("forget/probability") != base.value("forget/probability")
    # the model that stands for one that never saw the forget set is stored in the same way: here it is the base itself
    assert report.value("forget_quality") == 1


def test_every_format_has_its_own_reference_rows_and_folder(recipe: Recipe, prepared: Prepared) -> None:
    others = [*FORMATS, {"decomposition": "lowrank_nf4"}, {"decomposition": "lowrank_nf4", "decomposition_rank": 2}]
    recipes = [recipe, *(recipe.replace({"model": stored}) for stored in others)]
    assert len({reference_path(each, prepared.folder, prepared.base) for each in recipes}) == len(recipes)
    folders = [evaluation_folder(each, "v3").relative_to(recipe.output / "evaluations") for each in recipes]
    assert [str(folder) for folder in folders[:3]] == ["demo/v3", "demo/v3/int8", "demo/v3/int4"]
    # nor are logs of a quantised retain-only model written: they would be taken for those of the model on disk
    twins = [replace(prepared, retain_only=prepared.base) for _ in recipes]
    written = [export_path(each, twin) is not None for each, twin in zip(recipes, twins, strict=True)]
    assert written == [True, *(False for _ in others)]
    # what has no bearing on the format does not part the rows
    plain = recipe.replace({"model": {"decomposition_rank": 5}})
    assert reference_path(plain, prepared.folder, prepared.base) == reference_path(recipe, prepared.folder, prepared.base)


@pytest.mark.slow
def test_the_verb_scores_an_adapter_on_a_quantised_base(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    """On a real cluster; the report of the base as it is on disk stays where it is."""
    adapter = closed_adapter(recipe, prepared.base, tmp_path / "adapter")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")  # JSON is YAML
    for stored in ([], ["--model.quantization", "int8"]):
        assert evaluate.main(["--recipe", str(file), "--adapter", str(adapter), *stored]) == 0
    folder = evaluation_folder(recipe, digest_adapter(adapter)[:12])
    reports = [EvalReport.load(folder / name / "report.json") for name in ("0.5", "int8/0.5")]
    assert [report.base_variant for report in reports] == [None, "int8 (torchao, weight only, one scale a row)"]
    assert reports[0].base_digest == reports[1].base_digest
    assert EvalReport.load(folder / "int8" / "base.json").base_variant == reports[1].base_variant
    assert reports[0].value("forget/probability") != reports[1].value("forget/probability")
    pages = [(folder / name / "report.html").read_text() for name in ("0.5", "int8/0.5")]
    assert ["as on disk" in page for page in pages] == [True, False]
    assert "int8 (torchao, weight only, one scale a row)" in pages[1]
