"""Scoring an adapter as a Ray task: its reports at gate thresholds, each beside the rows that it was computed from.

<folder>/<threshold>/report.json     the report
<folder>/<threshold>/rows.jsonl      every row of every set
<folder>/<threshold>/choices.jsonl   what was picked of multiple-choice questions, where there are any
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grun.adapters import AdapterCard, digest_adapter, load_adapter
from grun.config import Recipe
from grun.evaluation.calibration import OrdinaryGates
from grun.evaluation.details import curve_point, curve_thresholds, gate_histograms
from grun.evaluation.evaluate import AdapterScorer, Rows
from grun.evaluation.multiple_choice import with_accuracy, write_choices
from grun.evaluation.report import EvalReport
from grun.evaluation.scores import write_rows
from grun.evaluation.sets import EvalSet, evaluation_sets
from grun.evaluation.summary import ScoredSet, summarise
from pipelines.calibrating import bound_metric, ordinary_of, raised
from pipelines.prepared import read_prepared
from pipelines.scoring import (
    Counter,
    ask_questions,
    kept_rows,
    make_scorer,
    questions_of,
    retain_only_rows,
    score_reference,
    select_rows,
    threshold_key,
)

__all__ = ["score_adapter"]


@dataclass(frozen=True)
class _Scored:
    """An adapter on the rows that it is judged by."""

    recipe: Recipe
    card: AdapterCard
    digest: str
    rows: AdapterScorer
    retain_only: Rows | None
    ordinary: OrdinaryGates | None
    """Gates of the calibration records, where thresholds are calibrated."""

    @property
    def sets(self) -> tuple[EvalSet, ...]:
        return self.rows.sets

    def at(self, threshold: float | None) -> tuple[list[ScoredSet], EvalReport]:
        """The rows at a gate threshold, and the metrics of them."""
        rows, base = self.rows.rows(threshold), self.rows.scorer.lm.info
        sets = [ScoredSet(s.name, s.role, s.digest, rows[s.name]) for s in self.sets]
        report = summarise(
            sets,
            base_digest=base.digest,
            base_variant=base.variant,
            adapter_digest=self.digest,
            base_rows=self.rows.base_rows,
            retain_only_rows=self.retain_only,
            layers=self.rows.adapter.gated_layers,
            threshold=threshold,
            part=self.recipe.evaluation.part,
        )
        return sets, report

    def in_detail(self, threshold: float | None, sets: Sequence[ScoredSet], report: EvalReport) -> EvalReport:
        """A report with what people look at too: the gates' histograms and the threshold curve."""
        points = [curve_point(report if t == threshold else self.at(t)[1], t) for t in curve_thresholds(threshold)]
        gates = gate_histograms(sets, self.rows.adapter.gated_layers)
        return report.model_copy(update={"gates": gates, "curve": tuple(points)})

    def promising(self, threshold: float | None, report: EvalReport) -> EvalReport:
        """A report with what is promised of ordinary prompts, or could be."""
        certificate = self.card.certificate
        # gates were counted on the base as it is on disk; nothing is promised of another
        if self.rows.scorer.lm.info.variant is None and certificate is not None and certificate.covers(threshold):
            report = report.model_copy(update={"certificate": certificate})
        if self.ordinary is not None and threshold is not None:
            bound = bound_metric(self.recipe.calibration, self.ordinary, threshold)
            report = report.model_copy(update={"metrics": (*report.metrics, bound)})
        return report


def score_adapter(
    recipe: Recipe,
    prepared: Path,
    base: str,
    retain_only: str | None,
    adapter_folder: Path,
    folder: Path,
    thresholds: Sequence[float | None],
    progress: Path | None = None,
    cache: Path | None = None,
    calibrates: bool = False,
    *,
    in_detail: bool = False,
) -> dict[str, EvalReport]:
    """Score an adapter at gate thresholds and write what came out to `<folder>/<threshold>`. Runs as a task.

    Args:
        recipe: `evaluation.part` says which rows.
        cache: a prefix cache that holds them and the adapter's placement; gates and answers are then read off suffixes.
        calibrates: whether thresholds are raised to the smallest one that `calibration` allows, as its mode says, so that what
            is scored is what may be served; reports then say in `gate/record_open_upper` how far the promise would hold.
        in_detail: whether reports hold what people look at too: the gates' histograms and the threshold curve.

    Raises:
        AdapterError: the adapter is damaged or for another base.
    """
    scored = _read(recipe, prepared, base, retain_only, adapter_folder, progress, cache, calibrates=calibrates)
    if scored.ordinary is not None and recipe.calibration.mode == "raise":
        thresholds = raised(recipe.calibration, scored.ordinary, thresholds)
    questions = questions_of(recipe)
    reports = {}
    for threshold in thresholds:
        sets, report = scored.at(threshold)
        if in_detail:
            report = scored.in_detail(threshold, sets, report)
        report = scored.promising(threshold, report)
        target = folder / threshold_key(threshold)
        target.mkdir(parents=True, exist_ok=True)
        write_rows(target / "rows.jsonl", kept_rows(recipe, scored.sets, {s.name: tuple(s.rows) for s in sets}))
        if questions:
            choices = ask_questions(scored.rows.scorer, questions, scored.rows.adapter, threshold)
            write_choices(target / "choices.jsonl", choices)
            report = with_accuracy(report, questions, choices)
        report.save(target / "report.json")
        reports[threshold_key(threshold)] = report
    return reports


def _read(
    recipe: Recipe,
    prepared: Path,
    base: str,
    retain_only: str | None,
    adapter_folder: Path,
    progress: Path | None,
    cache: Path | None,
    *,
    calibrates: bool,
) -> _Scored:
    """Read the gates of every row."""
    _request, splits = read_prepared(prepared)
    evaluation = recipe.evaluation
    sets = evaluation_sets(splits, part=evaluation.part, max_rows=evaluation.max_rows)
    scorer = make_scorer(recipe, base, Counter(progress, 1), cache)
    adapter, card = load_adapter(adapter_folder, scorer.lm)
    base_rows = select_rows(sets, score_reference(recipe, prepared, base))
    if retain_only is not None:
        score_reference(recipe, prepared, retain_only)
    rows = AdapterScorer(scorer, adapter, sets, base_rows)
    calibrates = calibrates and recipe.calibration.mode != "off" and bool(adapter.gated_layers)
    return _Scored(
        recipe,
        card,
        digest_adapter(adapter_folder),
        rows,
        retain_only_rows(recipe, prepared, sets, retain_only),
        ordinary_of(rows, splits) if calibrates else None,
    )
