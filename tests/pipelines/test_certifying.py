"""Certificates in the pipeline: thresholds raised as the recipe asks, counts that scoring confirms, tags on the model version.

Tasks run in this process, not on a cluster.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grun.adapters import AdapterCard, load_adapter, read_card, save_adapter
from grun.certificate import Certificate
from grun.config import Recipe
from grun.errors import DataError
from grun.evaluation.calibration import OrdinaryGates, holdout_halves
from grun.evaluation.report import EvalReport
from grun.evaluation.scores import read_rows
from grun.gates.linear import LinearGate
from grun.interventions import build_adapter
from grun.lm import load_frozen_lm
from pipelines import caching, certifying
from pipelines.adapter_scoring import score_adapter
from pipelines.caching import ensure_cache
from pipelines.calibrating import keeps_promise, read_ordinary
from pipelines.certifying import certificate_row, certified, check_calibration, no_certificate
from pipelines.prepared import Prepared, plan, write_prepared
from pipelines.recording import register
from pipelines.registry import CANDIDATE, Registry
from pipelines.scoring import make_scorer, score_reference, threshold_key
from pipelines.tasks import HelperTask
from pipelines.tracking import Tracker

NAMES = [
    f"{first}{second}" for first in ("Ma", "Ne", "Ot", "Pi", "Ro", "Ste") for second in ("ra", "lis", "vo", "nd", "mer", "kel")
]

# with a confidence of 0.8 six records are enough for a rate of 0.25, and of 15 two may be open
CALIBRATION = {"alpha": 0.25, "delta": 0.2}


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Run tasks in this process, and keep the names of their functions."""
    names: list[str] = []

    def inline(_recipe: Recipe, tasks: Sequence[HelperTask], **_options: object) -> list[Any]:
        names.extend(task.function.__name__ for task in tasks)
        return [task.function(**task.arguments, progress=tmp_path / "progress") for task in tasks]

    for module in (certifying, caching):
        monkeypatch.setattr(module, "run_tasks", inline)
    return names


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], data_folder: Path, tmp_path: Path) -> Recipe:
    """The request on files with more records held out, each in two wordings."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("forget", "retain"):
        (folder / f"{name}.jsonl").write_bytes((data_folder / f"{name}.jsonl").read_bytes())
    rows = [
        {"question": f"Where does {n} swim?", "answer": "In Harn.", "paraphrased_question": f"What is {n}'s lake?"} for n in NAMES
    ]
    (folder / "holdout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = str(tmp_path / "outputs")
    return make_recipe(output=output, data={"path": str(folder)}, calibration=CALIBRATION, adapter={"gate_threshold": 0.3})


@pytest.fixture
def prepared(recipe: Recipe) -> Prepared:
    prepared = plan(recipe)
    write_prepared(prepared)
    return prepared


@pytest.fixture
def adapter(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> Path:
    """Gates that read every prompt differently, around 1/2."""
    lm = load_frozen_lm(prepared.base)
    built = build_adapter(recipe.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=0)
    scorer = make_scorer(recipe, prepared.base, None)
    calibration, _check = holdout_halves(prepared.splits)
    with torch.no_grad():
        for index, (_layer, gated) in enumerate(built):
            assert isinstance(gated.gate, LinearGate)
            gated.gate.linear.weight.copy_(0.01 * torch.randn(1, lm.hidden_size))
            logits = scorer.closed_gate_values(calibration.prompts, built)[:, index].logit()
            gated.gate.linear.weight.div_(logits.std())
            gated.gate.linear.bias.sub_(logits.mean()).div_(logits.std())
    card = AdapterCard(
        adapter=recipe.adapter,
        hidden_size=lm.hidden_size,
        num_layers=lm.num_layers,
        base_name=prepared.base,
        base_digest=lm.info.digest,
    )
    return save_adapter(built, card, tmp_path / "adapter")


def certificate_of(adapter: Path) -> Certificate:
    found = read_card(adapter).certificate
    assert found is not None
    return found


def read_half(recipe: Recipe, prepared: Prepared, adapter: Path, which: int, cache: Path | None = None) -> OrdinaryGates:
    scorer = make_scorer(recipe, prepared.base, None, cache)
    return read_ordinary(scorer, load_adapter(adapter, scorer.lm)[0], holdout_halves(prepared.splits)[which])


def test_a_threshold_is_raised_to_the_least_that_keeps_the_promise(recipe: Recipe, prepared: Prepared, adapter: Path) -> None:
    target = certified(recipe, prepared, adapter, adapter.with_name("served"), threshold=0.3)
    certificate = certificate_of(target)
    gates = read_half(recipe, prepared, adapter, 0)
    assert gates.count(0.3, delta=0.2).upper_bound > 0.25
    least = gates.least_threshold(alpha=0.25, delta=0.2)
    assert least is not None
    assert read_card(target).adapter.gate_threshold == least > 0.3
    assert certificate.thresholds == {1: least, 3: least}
    assert certificate.calibration == gates.count(least, delta=0.2)
    assert certificate.calibration.num_open > 0
    assert certificate.check == read_half(recipe, prepared, adapter, 1).count(least, delta=0.2)
    assert (certificate.alpha, certificate.delta) == (0.25, 0.2)
    assert read_card(adapter).certificate is None


def test_scoring_what_is_served_opens_for_the_records_that_were_counted(
    recipe: Recipe, prepared: Prepared, adapter: Path, tmp_path: Path
) -> None:
    served = certified(recipe, prepared, adapter, tmp_path / "served", threshold=0.3)
    threshold, certificate = read_card(served).adapter.gate_threshold, certificate_of(served)
    for part, count in (("validation", certificate.calibration), ("test", certificate.check)):
        half = recipe.replace({"evaluation": {"part": part}})
        folder = tmp_path / part
        [report] = score_adapter(half, prepared.folder, prepared.base, None, served, folder, [threshold]).values()
        assert report.certificate == certificate
        rows = [row for row in read_rows(folder / threshold_key(threshold) / "rows.jsonl") if row.set_name == "holdout"]
        assert len({row.digest for row in rows}) == count.num_records == len(rows) / 2
        assert len({row.digest for row in rows if row.opened}) == count.num_open
        assert report.value("gate/false_open_rate") <= 2 * count.rate
    # what is scored at a lower threshold is not what was certified
    [lower] = score_adapter(recipe, prepared.folder, prepared.base, None, served, tmp_path / "lower", [0.3]).values()
    assert lower.certificate is None


def test_a_threshold_that_is_high_enough_stays(recipe: Recipe, prepared: Prepared, adapter: Path) -> None:
    target = certified(recipe, prepared, adapter, adapter, threshold=0.99)
    assert read_card(target).adapter.gate_threshold == 0.99
    certificate = certificate_of(target)
    assert certificate.holds
    assert (certificate.calibration.num_open, certificate.check.num_open) == (0, 0)
    assert certificate_row(certificate) == {"certificate": certificate.sentence}


def test_the_mode_check_leaves_the_threshold_and_says_that_nothing_is_promised(
    recipe: Recipe, prepared: Prepared, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe.replace({"calibration": {"mode": "check"}})
    target = certified(recipe, prepared, adapter, adapter, threshold=0.3)
    assert read_card(target).adapter.gate_threshold == 0.3
    assert not certificate_of(target).holds
    assert capsys.readouterr().err.strip() == certificate_of(target).sentence


@pytest.mark.parametrize(
    ("changes", "threshold", "reason"),
    [
        ({"calibration": {"mode": "off"}}, 0.4, r"`calibration\.mode` is off"),
        ({}, None, r"soft gates \(`adapter\.gate_threshold` unset\) touch every prompt a little"),
        (
            {"calibration": {"alpha": 0.01}},
            0.4,
            r"takes at least 161 records in each half of the holdout set, which has \d\d and \d\d",
        ),
    ],
)
def test_without_a_certificate_the_run_says_why(
    recipe: Recipe,
    prepared: Prepared,
    adapter: Path,
    ran: list[str],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    threshold: float | None,
    reason: str,
) -> None:
    recipe = recipe.replace(changes)
    check_calibration(recipe, prepared, threshold)
    said = capsys.readouterr().err
    assert said.startswith("there will be no certificate: ")
    assert re.search(reason, said)
    target = certified(recipe, prepared, adapter, adapter.with_name("served"), threshold=threshold)
    assert (read_card(target).certificate, read_card(target).adapter.gate_threshold) == (None, threshold)
    assert ran == []
    assert certificate_row(None)["certificate"].startswith("none")


def test_too_few_records_are_refused_where_promotion_asks_for_a_certificate(recipe: Recipe, prepared: Prepared) -> None:
    strict = recipe.replace({"promotion": {"require_certificate": True}})
    check_calibration(strict, prepared, 0.3)
    few = strict.replace({"calibration": {"alpha": 0.03, "delta": 0.05}})
    with pytest.raises(
        DataError,
        match=r"by 0\.03 at confidence 0\.95 takes at least 99 records in each half .*`promotion\.require_certificate: false`",
    ):
        check_calibration(few, prepared, 0.3)
    # soft gates and no calibration are choices, not mistakes
    check_calibration(few, prepared, None)
    check_calibration(few.replace({"calibration": {"mode": "off"}}), prepared, 0.3)
    assert no_certificate(strict, prepared, 0.3) is None


class TestSweep:
    """What a trial is scored at."""

    @staticmethod
    def score(
        recipe: Recipe, prepared: Prepared, adapter: Path, folder: Path, cache: Path | None = None
    ) -> dict[str, EvalReport]:
        score_reference(recipe, prepared.folder, prepared.base)
        half = recipe.replace({"evaluation": {"part": "validation"}})
        thresholds = [0.2, 0.3, 0.99]
        return score_adapter(
            half, prepared.folder, prepared.base, None, adapter, folder, thresholds, cache=cache, calibrates=True
        )

    def test_thresholds_are_raised_and_scored_once(
        self, recipe: Recipe, prepared: Prepared, adapter: Path, tmp_path: Path
    ) -> None:
        reports = self.score(recipe, prepared, adapter, tmp_path / "scores")
        least = read_half(recipe, prepared, adapter, 0).least_threshold(alpha=0.25, delta=0.2)
        assert [report.gate_threshold for report in reports.values()] == [least, 0.99]
        assert list(reports) == [threshold_key(least), "0.99"]
        assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == sorted(reports)
        assert all(keeps_promise(recipe.calibration, report) for report in reports.values())

    def test_the_certificate_of_the_chosen_one_is_of_the_threshold_that_was_scored(
        self, recipe: Recipe, prepared: Prepared, adapter: Path, tmp_path: Path
    ) -> None:
        first, _second = self.score(recipe, prepared, adapter, tmp_path / "scores").values()
        served = certified(recipe, prepared, adapter, tmp_path / "best", threshold=first.gate_threshold)
        assert read_card(served).adapter.gate_threshold == first.gate_threshold
        assert certificate_of(served).calibration.upper_bound == first.value("gate/record_open_upper")

    def test_the_mode_check_scores_what_was_asked_and_shows_which_would_do(
        self, recipe: Recipe, prepared: Prepared, adapter: Path, tmp_path: Path
    ) -> None:
        recipe = recipe.replace({"calibration": {"mode": "check"}})
        reports = self.score(recipe, prepared, adapter, tmp_path / "scores")
        assert list(reports) == ["0.2", "0.3", "0.99"]
        assert [keeps_promise(recipe.calibration, report) for report in reports.values()] == [False, False, True]

    def test_the_mode_off_leaves_scoring_alone(self, recipe: Recipe, prepared: Prepared, adapter: Path, tmp_path: Path) -> None:
        reports = self.score(recipe.replace({"calibration": {"mode": "off"}}), prepared, adapter, tmp_path / "scores")
        assert list(reports) == ["0.2", "0.3", "0.99"]
        assert not any("gate/record_open_upper" in report for report in reports.values())

    def test_rows_are_limited_and_calibration_is_not(
        self, recipe: Recipe, prepared: Prepared, adapter: Path, tmp_path: Path
    ) -> None:
        recipe = recipe.replace({"evaluation": {"max_rows": 3}})
        reports = self.score(recipe, prepared, adapter, tmp_path / "scores")
        half = {prompt.record.digest for prompt in holdout_halves(prepared.splits)[0].prompts}
        for report in reports.values():
            assert report["gate/false_open_rate"].num_samples == 6
            assert report["gate/record_open_upper"].num_samples == len(half) > 10

    def test_gates_are_read_off_the_cache_where_it_has_the_records(
        self, recipe: Recipe, prepared: Prepared, adapter: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = ensure_cache(recipe.replace({"cache": {"mode": "require"}}), prepared, [recipe], evaluates=True)
        passes: list[str] = []
        for name in ("CachedPass", "FullPass"):
            real = getattr(__import__("grun.evaluation.evaluate", fromlist=[name]), name)

            def noted(*arguments: Any, real: Any = real, name: str = name) -> Any:
                passes.append(name)
                return real(*arguments)

            monkeypatch.setattr(f"grun.evaluation.evaluate.{name}", noted)
        for which, expected in ((0, "CachedPass"), (1, "FullPass")):  # the cache of a sweep holds validation rows only
            passes.clear()
            cached = read_half(recipe, prepared, adapter, which, folder)
            assert passes == [expected]
            np.testing.assert_allclose(cached.largest, read_half(recipe, prepared, adapter, which).largest, rtol=0, atol=1e-5)


def test_the_certificate_is_on_the_model_version(recipe: Recipe, prepared: Prepared, adapter: Path, tmp_path: Path) -> None:
    served = certified(recipe, prepared, adapter, adapter, threshold=0.99)
    certificate = certificate_of(served)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "grun", tmp_path / "artifacts")
    with tracker.run("trained") as run_id:
        version = register(tracker, recipe, run_id, served, {"gate_never_opens": "why"})
    tags = tracker.client.get_model_version(recipe.registered_model, str(version)).tags
    assert tags["certificate_sentence"] == certificate.sentence
    assert tags["flag.gate_never_opens"] == "why"
    assert tags["certificate_holds"] == "true"
    assert (float(tags["certificate_alpha"]), float(tags["certificate_delta"])) == (0.25, 0.2)
    assert float(tags["certificate_bound"]) == certificate.calibration.upper_bound
    assert float(tags["certificate_check_bound"]) == certificate.check.upper_bound
    assert Certificate.model_validate_json(tags["certificate"]) == certificate
    _version, folder = Registry(tracker).download(recipe.registered_model, CANDIDATE, tmp_path / "into")
    assert certificate_of(folder) == certificate


def test_a_key_of_a_threshold_has_all_its_digits() -> None:
    least = float(np.nextafter(np.float32(0.5), np.float32(1)))
    assert [threshold_key(t) for t in (None, 0.5, 0.05, 1.0)] == ["soft", "0.5", "0.05", "1"]
    assert float(threshold_key(least)) == least


def test_a_certificate_promises_nothing_of_the_base_as_it_is_deployed(
    recipe: Recipe, prepared: Prepared, adapter: Path, tmp_path: Path
) -> None:
    served = certified(recipe, prepared, adapter, tmp_path / "served", threshold=0.3)
    threshold = read_card(served).adapter.gate_threshold
    for model, certificate in (({}, certificate_of(served)), ({"quantization": "int8"}, None)):
        arguments = (prepared.folder, prepared.base, None, served, tmp_path / "scores", [threshold])
        [report] = score_adapter(recipe.replace({"model": model}), *arguments).values()
        assert report.certificate == certificate
