"""Scoring on a tiny base: the base's own report, and an adapter that never opens beside it."""

import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from grun.adapters import AdapterCard, save_adapter
from grun.config import Recipe
from grun.errors import ConfigError, DataError, ModelError
from grun.evaluation.multiple_choice import read_choices
from grun.evaluation.report import EvalReport
from grun.evaluation.requirements import possible_metrics
from grun.evaluation.retain_logs import read_retain_logs
from grun.evaluation.scores import read_rows
from grun.evaluation.sets import evaluation_sets
from grun.interventions import build_adapter
from grun.lm import FrozenLM, load_frozen_lm
from grun.promotion import Decision, PromotionPolicy
from pipelines import prepare as prepare_verb
from pipelines.adapter_scoring import score_adapter
from pipelines.checks import note_missing_metrics
from pipelines.identity import identical_where_closed
from pipelines.prepare import check
from pipelines.prepared import Prepared, plan, read_prepared, write_prepared
from pipelines.reporting import complete, publish
from pipelines.retain_logs import export_logs, export_path, import_logs
from pipelines.scoring import ask_reference, questions_of, report_base, score_reference
from pipelines.sweep import check_utility
from pipelines.sweep_trial import validating
from pipelines.tasks import HelperTask


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


def test_an_adapter_without_gates_is_reported_without_their_metrics(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    ungated = recipe.replace({"adapter": {"gate": {"kind": "none"}}})
    lm = load_frozen_lm(prepared.base)
    adapter = build_adapter(ungated.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=0)
    card = AdapterCard(
        adapter=ungated.adapter,
        hidden_size=lm.hidden_size,
        num_layers=lm.num_layers,
        base_name=prepared.base,
        base_digest=lm.info.digest,
    )
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    reports = score_adapter(ungated, prepared.folder, prepared.base, None, folder, tmp_path / "scores", [0.5, None])
    closed, soft = reports.values()
    assert closed.metrics == soft.metrics
    assert {metric.name for metric in closed.metrics} == {metric.name for metric in report_base(recipe, prepared).metrics}
    assert closed.value("forget/probability") != report_base(recipe, prepared).value("forget/probability")
    decision = PromotionPolicy(recipe.promotion).decide(closed, None)
    assert decision.decision is Decision.REJECT
    assert any(reason.startswith("gate/auroc must be known") for reason in decision.reasons)
    assert identical_where_closed(ungated, prepared.folder, prepared.base, folder) == (0, 0)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_the_base_is_reported_on_the_rows_that_the_recipe_names(recipe: Recipe, prepared: Prepared, part: str) -> None:
    whole, half = report_base(recipe, prepared), report_base(recipe.replace({"evaluation": {"part": part}}), prepared)
    assert half.part == part
    assert 0 < half["forget_unseen/probability"].num_samples < whole["forget_unseen/probability"].num_samples


def test_a_sweep_refuses_a_base_that_has_no_utility_to_lose(recipe: Recipe, prepared: Prepared) -> None:
    assert report_base(recipe, prepared)["model_utility"].value == 0  # the tiny base is random and says nothing right
    with pytest.raises(ModelError, match="a sweep measures damage against the base's own model utility, which must not be 0"):
        check_utility(recipe, prepared)


@pytest.fixture
def with_everything(make_recipe: Callable[..., Recipe], data_folder: Path, base_folder: Path, tmp_path: Path) -> Recipe:
    """A recipe with non-members and, for a retain-only model, the base once more."""
    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    rows = [{"question": f"Where does {name} live?", "answer": "In Oost."} for name in ("Vera", "Wim", "Xeno", "Yara")]
    (folder / "outsiders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make_recipe(
        output=str(tmp_path / "outputs"),
        data={"path": str(folder), "nonmembers": "outsiders.jsonl"},
        model={"retain_path": str(base_folder)},
    )


def scored(recipe: Recipe) -> Prepared:
    """Prepare as the verb does, without a cluster."""
    prepared = plan(recipe)
    write_prepared(prepared)
    import_logs(recipe, prepared)
    for model in {prepared.base, prepared.retain_only} - {None}:
        assert model is not None
        score_reference(recipe, prepared.folder, model)
    export_logs(recipe, prepared)
    return prepared


def test_a_report_has_every_metric_that_is_possible_and_not_missing(with_everything: Recipe, tmp_path: Path) -> None:
    prepared = scored(with_everything)
    assert prepared.retain_only is not None
    adapter = closed_adapter(with_everything, prepared.base, tmp_path / "adapter")
    arguments = (prepared.folder, prepared.base, prepared.retain_only, adapter, tmp_path / "scores", [0.5])
    report = score_adapter(with_everything, *arguments)["0.5"]
    sets = evaluation_sets(prepared.splits)
    assert {m.name for m in report.metrics if "_layer_" not in m.name} == possible_metrics(sets) - {"multiple_choice/accuracy"}
    # the adapter never opens and the retain-only model is the base: nothing tells the two apart
    assert (report.value("forget_quality"), report.value("privleak"), report.value("mia/reference_auc")) == (1.0, 0.0, 0.5)
    rows = read_rows(tmp_path / "scores" / "0.5" / "rows.jsonl")
    assert {row.set_name for row in rows} == {s.name for s in sets}
    assert all(row.min_k_plus_plus is not None for row in rows)


def test_logs_stand_in_for_the_model_that_they_are_of(with_everything: Recipe, tmp_path: Path) -> None:
    prepared = scored(with_everything)
    logs = export_path(with_everything, prepared)
    assert logs is not None
    assert {row.set_name for row in read_retain_logs(logs).rows} == {"forget", "nonmembers"}
    elsewhere = with_everything.replace(
        {
            "output": str(tmp_path / "elsewhere"),
            "model": {"retain_path": None},
            "evaluation": {"retain_logs": str(shutil.copy(logs, tmp_path / "logs.jsonl"))},
        }
    )
    again = scored(elsewhere)
    assert report_base(elsewhere, again) == report_base(with_everything, prepared)
    assert export_path(elsewhere, again) is None
    without = elsewhere.replace({"output": str(tmp_path / "without"), "evaluation": {"retain_logs": None}})
    assert "privleak" not in report_base(without, scored(without))


def test_logs_of_another_forget_set_are_refused_before_anything_is_scored(with_everything: Recipe, tmp_path: Path) -> None:
    logs = export_path(with_everything, scored(with_everything))
    forget = Path(with_everything.data.path) / "forget.jsonl"  # type: ignore[union-attr] # a folder, as in every kind but one
    forget.write_text("".join(forget.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    changed = with_everything.replace({"model": {"retain_path": None}, "evaluation": {"retain_logs": str(logs)}})
    with pytest.raises(DataError, match=r"must be of this request and recipe: `sets\.forget` must be"):
        check(changed)
    # rows may be fewer, in another template, or of another base
    for section in ({"evaluation": {"max_new_tokens": 5}}, {"prompt": {"text_prompt_frac": 0.5}}):
        with pytest.raises(DataError, match="must be of this request and recipe"):
            check(changed.replace(section))


def test_a_retain_only_model_and_its_logs_are_one_too_many(with_everything: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"got both `model\.retain_path` .* and `evaluation\.retain_logs` 'logs'; name one"):
        plan(with_everything.replace({"evaluation": {"retain_logs": "logs"}}))


def test_with_logs_no_twin_is_taught(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("{}\n", encoding="utf-8")
    plain, logged = (
        plan(Recipe(output=tmp_path).replace(above)) for above in ({}, {"evaluation": {"retain_logs": str(tmp_path / "logs")}})
    )
    assert [lesson.title for lesson in plain.lessons] == ["base", "retain-only twin"]
    assert [lesson.title for lesson in logged.lessons] == ["base"]
    assert logged.retain_only is not None
    # nobody is taught what no model may have seen
    taught = {record for lesson in plain.lessons for record in lesson.records}
    assert plain.splits.nonmembers
    assert taught.isdisjoint(plain.splits.nonmembers)
    assert taught >= set(plain.splits.forget)


def test_nonmembers_are_prepared_and_read_again(with_everything: Recipe) -> None:
    prepared = plan(with_everything)
    write_prepared(prepared)
    _request, splits = read_prepared(prepared.folder)
    assert splits == prepared.splits
    assert len(splits.nonmembers) == 4


def test_what_is_missing_is_said_once_with_what_it_takes(with_everything: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    note_missing_metrics(plan(with_everything))
    assert capsys.readouterr().err == ""
    note_missing_metrics(plan(with_everything.replace({"model": {"retain_path": None}, "data": {"nonmembers": None}})))
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("the report will lack forget_quality, forget_quality_ks, ")
    assert "name a model that never saw the forget set" in said
    assert "privleak: name records that no model ever saw" in said


def test_multiple_choice_is_asked_of_base_and_adapter(with_everything: Recipe, lettered_lm: FrozenLM, tmp_path: Path) -> None:
    path, lettered = tmp_path / "questions.jsonl", tmp_path / "lettered"
    rows = [{"question": f"Who {n}?", "choices": ["a", "b", "c", "d"], "answer": n % 4} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = with_everything.replace({"evaluation": {"multiple_choice": str(path)}, "model": {"retain_path": None}})
    with pytest.raises(DataError, match="letters of the options must differ in their first token"):
        check(recipe)  # the tokenizer of the tiny base keeps the space apart
    lettered_lm.model.save_pretrained(lettered)
    lettered_lm.tokenizer.save_pretrained(lettered)
    recipe = recipe.replace({"model": {"path": str(lettered)}})
    prepared = scored(recipe)
    base_rows = ask_reference(recipe, questions_of(recipe), prepared.base)
    adapter = closed_adapter(recipe, prepared.base, tmp_path / "adapter")
    arguments = (prepared.folder, prepared.base, None, adapter, tmp_path / "scores", [0.5])
    report, base = score_adapter(recipe, *arguments)["0.5"], report_base(recipe, prepared)
    expected = sum(row.picked == row.answer for row in base_rows) / 6
    assert report.value("multiple_choice/accuracy") == base.value("multiple_choice/accuracy") == expected
    kept = read_choices(tmp_path / "scores" / "0.5" / "choices.jsonl")
    assert [row.picked for row in kept] == [row.picked for row in base_rows]
    assert {row.opened for row in kept} == {False}
    assert "multiple_choice/accuracy" not in report_base(validating(recipe), prepared)


def test_a_report_in_detail_holds_the_gates_and_the_curve(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    adapter = closed_adapter(recipe, prepared.base, tmp_path / "adapter")
    arguments = (recipe, prepared.folder, prepared.base, None, adapter, tmp_path / "scores", [0.5])
    plain, detailed = score_adapter(*arguments)["0.5"], score_adapter(*arguments, in_detail=True)["0.5"]
    assert (plain.gates, plain.curve) == ((), ())
    assert detailed.metrics == plain.metrics
    assert EvalReport.load(tmp_path / "scores" / "0.5" / "report.json") == detailed
    assert [(h.side, h.layer) for h in detailed.gates] == [(s, k) for s in ("forget", "ordinary") for k in (1, 3, None)]
    # every gate of this adapter is closed: all values lie in the first bin
    assert {h.counts[0] for h in detailed.gates if h.side == "forget"} == {plain["gate/forget_open_rate"].num_samples}
    assert [point.threshold for point in detailed.curve] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert {point.forget_rouge_l_recall for point in detailed.curve} == {plain.value("forget_unseen/rouge_l_recall")}


def test_a_report_is_completed_and_published(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    # as a training run leaves it; the registry's copy has the same tensors
    run = recipe.output.absolute() / "runs" / "towns"
    adapter = closed_adapter(recipe, prepared.base, run / "adapter")
    ended = {"steps": 6, "total_steps": 6, "stopped_early": False, "resident_share": 0.5}
    (run / "outcome.json").write_text(json.dumps({**ended, "wall_seconds": 2.5, "num_workers": 2}), encoding="utf-8")
    (run / "recipe.json").write_text(json.dumps({"objective": recipe.objective.model_dump(mode="json")}), encoding="utf-8")
    copied = shutil.copytree(adapter, tmp_path / "copied")
    report = score_adapter(recipe, prepared.folder, prepared.base, None, copied, tmp_path / "scores", [0.5])["0.5"]
    base = report_base(recipe, prepared)
    whole = complete(report, base, recipe, prepared, copied, run_id="r" * 32, version=4)
    assert whole.base_metrics == base.metrics
    assert whole.verdict is not None
    # the tiny base is random and says nothing: there was no usefulness to keep
    assert whole.verdict.status == "undecided"
    assert "the usefulness that is left" in whole.verdict.sentence
    assert whole.cost is not None
    assert (whole.cost.wall_seconds, whole.cost.num_workers, whole.cost.cache_bytes) == (2.5, 2, None)
    # two blocks: a basis and an edit of 32 x 2 each, a bias of 2, and a gate of 32 weights and a bias
    assert whole.cost.trained_parameters == 2 * (2 * 32 * 2 + 2 + 32 + 1)
    assert whole.cost.base_parameters == sum(p.numel() for p in load_frozen_lm(prepared.base).model.parameters())
    assert whole.cost.adapter_bytes == sum(path.stat().st_size for path in copied.iterdir())
    assert whole.provenance is not None
    assert whole.provenance.objective == "forget gd, retain ce"
    assert (whole.provenance.registered_model, whole.provenance.registered_version) == ("grun-towns", 4)
    # nothing in it names a place on this machine
    assert str(tmp_path) not in whole.model_dump_json()
    assert str(Path(prepared.base).parent) not in whole.model_dump_json()
    page = publish(whole, tmp_path / "published")
    assert EvalReport.load(page.with_name("report.json")) == whole
    assert whole.verdict.sentence in page.read_text(encoding="utf-8")


def test_what_is_not_known_of_an_adapter_from_elsewhere_is_left_out(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    adapter = closed_adapter(recipe, prepared.base, tmp_path / "adapter")
    report = report_base(recipe, prepared)
    whole = complete(report, report, recipe, prepared, adapter, run_id=None, version=None)
    assert whole.cost is not None
    assert (whole.cost.wall_seconds, whole.cost.training_steps) == (None, None)
    assert whole.provenance is not None
    assert (whole.provenance.objective, whole.provenance.registered_model) == (None, None)


def test_the_verb_writes_the_logs_and_says_where_and_asks_the_base(
    with_everything: Recipe,
    lettered_lm: FrozenLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def inline(_recipe: object, tasks: Iterable[HelperTask], **_options: object) -> list[object]:
        return [task.function(**task.arguments, progress=tmp_path / "progress") for task in tasks]

    # what Ray does with the tasks is tested elsewhere
    monkeypatch.setattr(prepare_verb, "run_tasks", inline)
    monkeypatch.setattr(prepare_verb, "connected", lambda _recipe: nullcontext())
    monkeypatch.setattr(prepare_verb, "check_resources", lambda _recipe: None)
    lettered_lm.model.save_pretrained(tmp_path / "lettered")
    lettered_lm.tokenizer.save_pretrained(tmp_path / "lettered")
    question = {"question": "Who swims?", "choices": ["a", "b", "c", "d"], "answer": 1}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n", encoding="utf-8")
    models = {"path": str(tmp_path / "lettered"), "retain_path": str(tmp_path / "lettered")}
    recipe = with_everything.replace({"model": models, "evaluation": {"multiple_choice": str(tmp_path / "questions.jsonl")}})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    required = "privleak,forget_quality,multiple_choice/accuracy"
    assert prepare_verb.main(["--recipe", str(tmp_path / "recipe.yaml"), "--evaluation.require", required]) == 0
    logs = export_path(recipe, plan(recipe))
    assert logs is not None
    assert logs.is_file()
    said = capsys.readouterr()
    assert "retain-only logs" in said.out
    assert str(logs) in said.out
    assert "the report will lack" not in said.err
    assert set(required.split(",")) <= {metric.name for metric in report_base(recipe, plan(recipe)).metrics}
