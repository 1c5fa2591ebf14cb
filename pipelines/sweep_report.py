"""What a sweep leaves for people: figures and tables in MLflow, one self-contained HTML file, and a summary."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from grun.config import Recipe
from grun.evaluation.figures import gate_histogram, pareto_figure, threshold_figure
from grun.evaluation.html import finalize
from grun.evaluation.scores import read_rows
from grun.writing import telling, write_text
from pipelines.certifying import certificate_row, promise
from pipelines.cli import next_step
from pipelines.console import summary
from pipelines.recording import flag_rows
from pipelines.scoring import threshold_key
from pipelines.sweep_outcome import SweepOutcome, SweepPoint
from pipelines.tracking import Tracker
from tune_spaces import Space

__all__ = ["publish", "show"]


_CAPTIONS = {
    "pareto": "Every trial at every threshold: the further left, the more is forgotten; the further up, the more is kept. "
    "Points on the line are beaten by none on both counts.",
    "gates": "How far the gates of the chosen adapter open: forget prompts should stand at 1, ordinary ones at 0.",
    "thresholds": "The chosen adapter at every threshold of the space, without training again.",
}
"""What a reader is to see in each figure."""


def publish(tracker: Tracker, run_id: str, recipe: Recipe, space: Space, outcome: SweepOutcome, folder: Path) -> Path:
    """Write `report.html` and the figures to the sweep's folder, and record them with the chosen point in its run."""
    figures = _figures(recipe, outcome, folder)
    with telling(folder / "figures"):
        (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        with telling(path := folder / "figures" / f"{name}.png"):
            figure.savefig(path, dpi=110)
        tracker.log_figure(run_id, figure, f"figures/{name}.png")
    page = folder / "report.html"
    write_text(page, _render(recipe, space, outcome, figures))
    tracker.log_text(run_id, page.read_text(encoding="utf-8"), "report.html")
    chosen = outcome.chosen
    tracker.log_metrics(run_id, {m.name: m.value for m in chosen.report.metrics if m.value is not None})
    tracker.log_metrics(run_id, {"sweep/score": chosen.score, "sweep/trials": len(outcome.trials)})
    tracker.log_json(
        run_id,
        {
            "chosen": _row(chosen),
            "certificate": chosen.report.certificate and chosen.report.certificate.model_dump(mode="json"),
            "score": f"{recipe.sweep.utility_weight:g} x min(utility ratio, 1) - forget ROUGE-L recall",
            "front": [_row(point) for point in outcome.front],
            "points": [_row(point) for point in outcome.points],
        },
        "sweep.json",
    )
    return page


def _figures(recipe: Recipe, outcome: SweepOutcome, folder: Path) -> dict[str, Figure]:
    chosen = outcome.chosen
    rows = read_rows(folder / "trials" / chosen.trial.trial_id / "evaluation" / threshold_key(chosen.threshold) / "rows.jsonl")
    forget = [max(row.gate_values) for row in rows if row.set_name == "forget_unseen"]
    ordinary = [max(row.gate_values) for row in rows if row.set_name == "holdout"]
    same_trial = [point for point in outcome.points if point.trial.trial_id == chosen.trial.trial_id]
    return {
        "pareto": pareto_figure(
            [(point.forgetting, point.utility) for point in outcome.points],
            front=[(point.forgetting, point.utility) for point in outcome.front],
            chosen=(chosen.forgetting, chosen.utility),
            max_forget=recipe.promotion.max_forget_rouge,
            min_utility=recipe.promotion.min_utility_ratio,
        ),
        "gates": gate_histogram(forget, ordinary, chosen.threshold),
        "thresholds": threshold_figure(
            [point.threshold for point in same_trial],
            [point.forgetting for point in same_trial],
            [point.utility for point in same_trial],
            [point.report.value("gate/false_open_rate") for point in same_trial],
        ),
    }


def _row(point: SweepPoint) -> dict[str, object]:
    return {
        "trial": point.trial.trial_id,
        **{path.rsplit(".", 1)[-1]: value for path, value in point.trial.point.items()},
        "threshold": point.threshold,
        "steps": point.trial.steps,
        "stopped early": point.trial.stopped_early,
        "forget ROUGE-L": point.forgetting,
        "utility ratio": point.utility,
        "gate AUROC": point.report.value("gate/auroc"),
        "false open": point.report.value("gate/false_open_rate"),
        "score": point.score,
    }


def _best_of_trials(outcome: SweepOutcome) -> list[SweepPoint]:
    """Each trial at its best threshold, best first."""
    best: dict[str, SweepPoint] = {outcome.chosen.trial.trial_id: outcome.chosen}
    for point in outcome.points:
        known = best.get(point.trial.trial_id)
        if known is None or point.score > known.score:
            best[point.trial.trial_id] = point
    return sorted(best.values(), key=lambda point: (point is not outcome.chosen, point.trial.stopped_early, -point.score))


def _render(recipe: Recipe, space: Space, outcome: SweepOutcome, figures: dict[str, Figure]) -> str:
    environment = Environment(
        loader=PackageLoader("pipelines", "."), autoescape=True, undefined=StrictUndefined, finalize=finalize
    )
    return environment.get_template("sweep_report.html.j2").render(
        recipe=recipe,
        space=space,
        chosen=outcome.chosen,
        certificate=promise(outcome.chosen.report.certificate),
        trials=[_row(point) for point in _best_of_trials(outcome)],
        failed=[trial for trial in outcome.trials if trial.failure],
        front=[_row(point) for point in outcome.front],
        metrics=[metric for metric in outcome.chosen.report.metrics if metric.value is not None],
        captions=_CAPTIONS,
        figures={name: _as_data_uri(figure) for name, figure in figures.items()},
    )


def _as_data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def show(recipe: Recipe, outcome: SweepOutcome, version: int, folder: Path, *, base: str, again: str) -> None:
    """Print the summary of a sweep."""
    chosen = outcome.chosen
    stopped = sum(trial.stopped_early for trial in outcome.trials)
    failed = sum(trial.failure is not None for trial in outcome.trials)
    flagged = "; ".join(f"{trial.trial_id}: {', '.join(trial.flags)}" for trial in outcome.trials if trial.flags)
    share = max((trial.resident_share for trial in outcome.trials if trial.done), default=1.0)
    point = {path: str(value) for path, value in chosen.trial.point.items()}
    rows: Sequence[tuple[str, str]] = [
        (
            "trials",
            f"{len(outcome.trials)} ({stopped} stopped early, {failed} failed), {len(outcome.points)} points with thresholds",
        ),
        ("workers", f"{recipe.train.num_workers} a trial, each holding {share:.0%} of the base's parameters"),
        ("Pareto front", ", ".join(f"({p.forgetting:.3f}, {p.utility:.3f})" for p in outcome.front)),
        ("chosen by", f"{recipe.sweep.utility_weight:g} x min(utility ratio, 1) - forget ROUGE-L recall = {chosen.score:.4f}"),
        ("chosen", f"trial {chosen.trial.trial_id} at gate threshold {chosen.threshold:g}"),
        *point.items(),
        ("forget ROUGE-L", f"{chosen.forgetting:.4f} on validation prompts in unseen words"),
        ("utility ratio", f"{chosen.utility:.4f} of the base's"),
        ("gate AUROC", f"{chosen.report.value('gate/auroc'):.4f}"),
        *([("flagged trials", flagged)] if flagged else []),
        *flag_rows(outcome.flags).items(),
        *certificate_row(chosen.report.certificate).items(),
        ("base", base),
        ("registered", f"{recipe.registered_model} version {version}, alias candidate"),
        ("report", str(folder / "report.html")),
    ]
    summary(f"sweep of {recipe.name}", dict(rows), [next_step("promote", again, "judge the candidate and move the champion")])
