"""Attacks as a task: on an adapter from disk, into the report, its metrics and its summary; text only where it is allowed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grun.adapters import AdapterCard, save_adapter
from grun.config import Recipe
from grun.evaluation.attacks import AttackResult
from grun.evaluation.report import EvalReport
from grun.interventions import build_adapter
from grun.lm import load_frozen_lm
from pipelines import attacks
from pipelines.attacks import attack, attack_metrics, attack_rows
from pipelines.prepared import Prepared, plan, write_prepared
from pipelines.tasks import HelperTask

NAMES = ("paraphrase", "format/other_template", "chain_of_clues", "adapter_off")


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose tasks run in this process."""

    def inline(_recipe: Recipe, tasks: Sequence[HelperTask], **_options: object) -> list[Any]:
        return [task.function(**task.arguments, progress=tmp_path / "progress") for task in tasks]

    monkeypatch.setattr(attacks, "run_tasks", inline)
    return make_recipe(output=str(tmp_path / "outputs"))


@pytest.fixture
def prepared(recipe: Recipe) -> Prepared:
    prepared = plan(recipe)
    write_prepared(prepared)
    return prepared


def saved(recipe: Recipe, base: str, folder: Path, *, bias: float) -> Path:
    """An adapter whose gates read nothing but their bias."""
    lm = load_frozen_lm(base)
    adapter = build_adapter(recipe.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=0)
    with torch.no_grad():
        for _layer, intervention in adapter:
            for parameter in intervention.gate.parameters():
                parameter.fill_(bias if parameter.shape == (1,) else 0.0)
    card = AdapterCard(
        adapter=recipe.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, base_name=base, base_digest=lm.info.digest
    )
    return save_adapter(adapter, card, folder)


def attacked(recipe: Recipe, prepared: Prepared, folder: Path, bias: float) -> EvalReport:
    adapter = saved(recipe, prepared.base, folder / "adapter", bias=bias)
    return attack(recipe, prepared, adapter, EvalReport(base_digest="0" * 64, gate_threshold=0.5, metrics=()), NAMES)


def by_name(report: EvalReport) -> dict[str, AttackResult]:
    return {result.name: result for result in report.attacks}


def test_an_adapter_that_never_opens_leaks_what_the_base_knows(
    recipe: Recipe, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = attacked(recipe, prepared, tmp_path, bias=-50.0)
    results = by_name(report)
    assert set(results) == {*NAMES} - {"chain_of_clues"}
    assert "chain_of_clues" in capsys.readouterr().err, "an attack that cannot be tried is not passed over in silence"
    for name in ("paraphrase", "format/other_template"):
        result = results[name]
        assert (result.forget_open_rate, result.ordinary_open_rate) == (0, 0)
        assert result.num_ordinary == 6
        assert result.forget_rouge_l_recall == result.base_rouge_l_recall
    metrics = attack_metrics(report)
    assert metrics["attack/paraphrase/forget_open_rate"] == 0
    assert "attack/adapter_off/forget_open_rate" not in metrics
    assert len(attack_rows(report)) == len(results)


def test_an_adapter_that_always_opens_is_seen_on_ordinary_prompts(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    result = by_name(attacked(recipe, prepared, tmp_path, bias=50.0))["format/other_template"]
    assert (result.forget_open_rate, result.ordinary_open_rate) == (1, 1)


@pytest.mark.parametrize("keep_text", [False, True])
def test_forget_text_is_in_the_report_only_where_it_is_allowed(
    recipe: Recipe, prepared: Prepared, tmp_path: Path, keep_text: bool
) -> None:
    text = attacked(recipe.replace({"tracking": {"keep_text": keep_text}}), prepared, tmp_path, bias=-50.0).model_dump_json()
    assert ("does" in text and "live" in text) == keep_text


def test_the_summary_begins_with_the_worst() -> None:
    def result(name: str, recall: float) -> AttackResult:
        return AttackResult(
            name=name, family="x", description="x", target="prompts", num_prompts=4, forget_rouge_l_recall=recall, num_dropped=1
        )

    report = EvalReport(base_digest="0" * 64, metrics=(), attacks=(result("a", 0.1), result("b", 0.7), result("c", 0.4)))
    rows = attack_rows(report)
    assert list(rows) == ["attack b", "attack c", "attack a"]
    assert rows["attack b"] == "0.700 said; 1 too long"
