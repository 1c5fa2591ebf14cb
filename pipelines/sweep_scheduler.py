"""ASHA over the trials of a sweep: it asks, and it remembers.

A trial that falls behind is asked to finish through a `STOP` file in its folder: its workers end in the next report, its
resources return to the cluster like those of any finished run, and its adapter is kept. (Letting Tune kill the trial would
leave the placement group of its workers behind wherever Ray's dashboard does not run.)

What was judged stands in `rungs.jsonl` in the sweep's folder, in the order in which it was judged. Whoever continues the
sweep judges the same again, and so has the same rungs; a report that was made and not judged is handed in again by its trial.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from grun.config import Recipe
from pipelines.entry import STOP_FILE
from pipelines.journal import append_entry, read_entries
from pipelines.sweep_search import TRIAL_KEY

__all__ = ["CooperativeASHA", "make_scheduler", "rungs_of"]

_SCORE = "probe/score"


class CooperativeASHA(ASHAScheduler):
    """ASHA whose decision to stop is a request to the trial, and whose rungs outlive it. Trials go by the ids of the sweep.

    Args:
        folder: of the sweep.
        options: as for Tune's own; time is in optimizer steps, and the metric the probe's score.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(time_attr="step", metric=_SCORE, mode="max", **options)
        self._folder = folder
        self._judged: dict[str, int] = {}
        self._asked: set[str] = set()
        for entry in read_entries(folder / "rungs.jsonl"):
            self._judge(entry["trial"], entry["step"], entry["score"])

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial is known from its first report on."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002 - Tune's signature
        """Judge a report, once; the trial goes on until it has seen the request."""
        name = trial.config[TRIAL_KEY]
        if not result.get("scored") and name not in self._asked and result["step"] > self._judged.get(name, 0):
            append_entry(self._folder / "rungs.jsonl", {"trial": name, "step": result["step"], "score": result[_SCORE]})
            self._judge(name, result["step"], result[_SCORE])
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its score is of other rows than those of the probe, and belongs on no rung."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """What it reported stays on the rungs."""

    def _judge(self, name: str, step: int, score: float) -> None:
        known = cast(Any, SimpleNamespace(trial_id=name))
        if name not in self._judged:
            super().on_trial_add(cast(Any, None), known)
        self._judged[name] = step
        if super().on_trial_result(cast(Any, None), known, {"step": step, _SCORE: score}) == TrialScheduler.STOP:
            self._asked.add(name)
            stop = self._folder / "trials" / name / STOP_FILE
            stop.parent.mkdir(parents=True, exist_ok=True)
            stop.touch()


def make_scheduler(recipe: Recipe, folder: Path, num_trials: int, total_steps: int) -> CooperativeASHA | None:
    """The scheduler that a recipe asks for; None where every trial is trained to its end."""
    if recipe.sweep.scheduler != "asha" or num_trials < 2:
        return None
    return CooperativeASHA(
        folder,
        grace_period=recipe.sweep.grace_reports * recipe.train.report_every,
        reduction_factor=recipe.sweep.reduction_factor,
        max_t=total_steps + 1,
    )


def rungs_of(recipe: Recipe, num_trials: int, total_steps: int) -> tuple[int, ...]:
    """Steps from which on a report may end a trial: there its workers wait for the verdict."""
    if recipe.sweep.scheduler != "asha" or num_trials < 2:
        return ()
    rungs = [recipe.sweep.grace_reports * recipe.train.report_every]
    while rungs[-1] <= total_steps:
        rungs.append(rungs[-1] * recipe.sweep.reduction_factor)
    return tuple(rungs[:-1])
