"""The outcome of a sweep: every (trial, threshold) as a point, the Pareto front, and the chosen one with its score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grun.config import Recipe
from grun.errors import TrainingError
from grun.evaluation.report import EvalReport
from pipelines.calibrating import keeps_promise
from pipelines.scoring import threshold_key
from pipelines.sweep_record import TrialRecord, read_trials
from pipelines.sweep_trial import sweep_score
from pipelines.trainer import read_outcome

__all__ = ["SweepOutcome", "SweepPoint", "collect", "flags_of", "pareto_front"]


@dataclass(frozen=True)
class SweepPoint:
    """A trained trial at one gate threshold, scored on validation rows."""

    trial: TrialRecord
    threshold: float
    report: EvalReport
    score: float
    """`utility_weight` x min(utility ratio, 1) - forget ROUGE-L recall."""

    @property
    def forgetting(self) -> float:
        """ROUGE-L recall on forget prompts in unseen words; lower is better."""
        return self.report.value("forget_unseen/rouge_l_recall")

    @property
    def utility(self) -> float:
        """Model utility as a share of the base's; higher is better."""
        return self.report.value("model_utility_ratio")


@dataclass(frozen=True)
class SweepOutcome:
    """All points of a sweep and what follows from them."""

    trials: tuple[TrialRecord, ...]
    points: tuple[SweepPoint, ...]
    front: tuple[SweepPoint, ...]
    """No other point is better in one objective and at least as good in the other; only trials that ran to the end."""
    chosen: SweepPoint
    flags: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with the chosen adapter although it was trained to the end."""


def flags_of(folder: Path, outcome: SweepOutcome, threshold: float | None) -> dict[str, str]:
    """What is wrong with the chosen adapter at the gate threshold that it is served with."""
    return read_outcome(folder / "trials" / outcome.chosen.trial.trial_id).flags_at(threshold)


def pareto_front(points: Sequence[SweepPoint]) -> tuple[SweepPoint, ...]:
    """The points that no other point dominates, by rising forgetting; of equal points the first stands for all."""
    front: list[SweepPoint] = []
    for point in sorted(points, key=lambda p: (p.forgetting, -p.utility)):
        if not front or point.utility > front[-1].utility:
            front.append(point)
    return tuple(front)


def collect(recipe: Recipe, folder: Path, thresholds: Sequence[float]) -> SweepOutcome:
    """Read what the trials left behind and choose.

    Args:
        thresholds: where a trial's record does not say at which ones it was scored.

    Trials that ASHA stopped are shown, but neither on the front nor chosen: their numbers are of another length.

    Raises:
        TrainingError: no trial ran to the end.
    """
    trials = read_trials(folder)
    points = []
    for trial in trials:
        if trial.done and trial.failure is None:
            evaluation = folder / "trials" / trial.trial_id / "evaluation"
            scored = trial.thresholds or thresholds
            reports = {t: EvalReport.load(evaluation / threshold_key(t) / "report.json") for t in scored}
            points += [_point(recipe, trial, threshold, report) for threshold, report in reports.items()]
    finished = [point for point in points if not point.trial.stopped_early]
    if not finished:
        raise TrainingError(
            f"a sweep needs at least one trial that runs to the end, got {len(trials)} trial(s) and none of them did; {_why(trials)}"
        )
    # an adapter that cannot be certified is chosen only where none can
    promising = [point for point in finished if keeps_promise(recipe.calibration, point.report)]
    return SweepOutcome(tuple(trials), tuple(points), pareto_front(finished), _choose(promising or finished))


def _why(trials: Sequence[TrialRecord]) -> str:
    """Why no trial ran to the end, or what to do about it."""
    if failures := sorted({trial.failure for trial in trials if trial.failure}):
        return f"they failed with: {' | '.join(failures)}"
    if all(trial.done for trial in trials):
        return "raise `sweep.grace_reports`"
    return "what became of them is said above; the same command goes on with them"


def _point(recipe: Recipe, trial: TrialRecord, threshold: float, report: EvalReport) -> SweepPoint:
    score = sweep_score(recipe, report.value("forget_unseen/rouge_l_recall"), report.value("model_utility_ratio"))
    return SweepPoint(trial, threshold, report, score)


def _choose(points: Sequence[SweepPoint]) -> SweepPoint:
    """The highest score; ties go to the gate that tells prompts apart best, then to the middle of its tied thresholds."""

    def merit(point: SweepPoint) -> tuple[float, float, float]:
        return (round(point.score, 6), -point.report.value("gate/false_open_rate"), point.report.value("gate/auroc"))

    best = max(map(merit, points))
    tied = [point for point in points if merit(point) == best]
    same_trial = sorted((p for p in tied if p.trial is tied[0].trial), key=lambda p: p.threshold)
    return same_trial[(len(same_trial) - 1) // 2]
