"""One trial of a sweep: a point of the space -> a Ray Train run -> its reports at every gate threshold.

A trial that ASHA gives up is asked to finish through a `STOP` file in its folder: its workers end in the next report,
its resources return to the cluster like those of any finished run, and its adapter is kept. (Letting Tune kill the
trial would leave the placement group of its workers behind wherever Ray's dashboard does not run.)
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import Field
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grun.config import Config, Recipe
from grun.errors import GrunError
from pipelines.adapter_scoring import score_adapter
from pipelines.entry import FORGETTING, STOP_FILE, UTILITY, ReportToTune, with_objectives
from pipelines.prepared import Prepared
from pipelines.slots import train_on_slot
from pipelines.tasks import HelperTask, run_tasks
from pipelines.trainer import TrainOutcome, read_outcome, train_on_ray
from tune_spaces import apply_point

__all__ = ["CooperativeASHA", "TrialContext", "TrialRecord", "make_trial", "read_trials", "sweep_score", "validating"]

_TRIAL_FILE = "trial.json"

_WORST = {FORGETTING: 1.0, UTILITY: 0.0, "probe/score": -1.0}


class TrialRecord(Config):
    """What a trial leaves in its folder as `trial.json`."""

    trial_id: str
    """Tune's id of the trial."""
    started: float
    """When it started first, in seconds since the epoch."""
    point: dict[str, Any]
    """The point of the space, by dotted path."""
    done: bool = False
    """Whether it has ended, well or badly."""
    failure: str | None = None
    """What was wrong with the point, where it could not be trained."""
    steps: int = 0
    """Optimizer steps that were done."""
    total_steps: int = 0
    """Optimizer steps of a full run."""
    stopped_early: bool = False
    """Whether ASHA ended it."""
    resident_share: float = 1.0
    """Largest share of the base's parameters that a worker held between steps."""
    hosts: tuple[str, ...] = ()
    """Names of the hosts that its workers ended on, by rank."""
    thresholds: tuple[float, ...] = ()
    """Gate thresholds that it was scored at: those of the space, raised where calibration asks for it."""
    result: dict[str, float] = Field(default_factory=dict)
    """The objectives at the trial's best threshold."""

    def write(self, folder: Path) -> None:
        """Write the record, whole or not at all."""
        partial = folder / f".{_TRIAL_FILE}.partial"
        partial.write_text(self.model_dump_json(indent=2), encoding="utf-8")
        partial.replace(folder / _TRIAL_FILE)


def validating(recipe: Recipe) -> Recipe:
    """The recipe that scores the rows a sweep chooses by; it does not choose by multiple-choice questions, so they are not asked."""
    return recipe.replace({"evaluation": {"part": "validation", "multiple_choice": None}})


def sweep_score(recipe: Recipe, forgetting: float, utility: float) -> float:
    """What a sweep chooses by. More utility than the base's is chance and not worth anything."""
    return recipe.sweep.utility_weight * min(utility, 1.0) - forgetting


def read_trials(folder: Path) -> list[TrialRecord]:
    """Read the records of a sweep's trials, in the order in which they started."""
    files = (folder / "trials").glob(f"*/{_TRIAL_FILE}")
    records = [TrialRecord.model_validate_json(file.read_text(encoding="utf-8")) for file in files]
    return sorted(records, key=lambda record: record.started)


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share."""

    recipe: Recipe
    prepared: Prepared
    folder: Path
    """The sweep's folder; a trial's own is `trials/<id>` in it."""
    thresholds: tuple[float, ...]
    cache: Path | None = None
    """Prefix cache of every placement that the space may try."""
    hub: str | None = None
    """Name of the hub of the warm slots; None where every trial starts workers of its own."""

    def trial_folder(self, trial_id: str) -> Path:
        """Folder of a trial."""
        return self.folder / "trials" / trial_id


class CooperativeASHA(ASHAScheduler):
    """ASHA whose decision to stop is a request to the trial."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self._folder = folder
        self._asked: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Judge a report; the trial goes on until it has seen the request."""
        if trial.trial_id in self._asked or result.get("scored"):
            return str(TrialScheduler.CONTINUE)
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self._asked.add(trial.trial_id)
            stop = self._folder / "trials" / trial.trial_id / STOP_FILE
            stop.parent.mkdir(parents=True, exist_ok=True)
            stop.touch()
        return str(TrialScheduler.CONTINUE)


def make_trial(context: TrialContext) -> Callable[[Mapping[str, Any]], None]:
    """Return the function that Tune runs for each trial."""

    def trial(point: Mapping[str, Any]) -> None:
        trial_id = tune.get_context().get_trial_id()
        folder = context.trial_folder(trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        record = _begin(folder, trial_id, point)
        try:
            recipe = apply_point(context.recipe, point)
            outcome = _train(context, recipe, trial_id, folder)
            best, thresholds = _score(context, recipe, outcome, folder)
            ended: dict[str, Any] = {
                name: getattr(outcome, name) for name in ("steps", "total_steps", "stopped_early", "resident_share", "hosts")
            } | {"thresholds": thresholds}
        except GrunError as error:
            # a point that cannot be trained is a result of the search and not the end of it
            best, ended = _WORST, {"failure": f"{type(error).__name__}: {error}"}
        record = record.model_copy(update={**ended, "done": True, "result": best})
        record.write(folder)
        tune.report({**best, "step": record.total_steps + 1, "scored": True})

    return trial


def _train(context: TrialContext, recipe: Recipe, trial_id: str, folder: Path) -> TrainOutcome:
    if context.hub is None:
        callbacks = [cast(Any, ReportToTune)()]
        return train_on_ray(recipe, context.prepared, folder, name=trial_id, cache=context.cache, callbacks=callbacks)
    for metrics in train_on_slot(context.hub, trial_id, recipe, folder):
        tune.report(with_objectives(metrics))
    return read_outcome(folder)


def _begin(folder: Path, trial_id: str, point: Mapping[str, Any]) -> TrialRecord:
    """The record of a trial that starts, or that goes on after an interruption."""
    before = next((record for record in read_trials(folder.parents[1]) if record.trial_id == trial_id), None)
    record = before or TrialRecord(trial_id=trial_id, started=time.time(), point=dict(point))
    record.write(folder)
    return record


def _score(
    context: TrialContext, recipe: Recipe, outcome: TrainOutcome, folder: Path
) -> tuple[dict[str, float], tuple[float, ...]]:
    """Score the adapter at every threshold on validation rows, in a task beside the workers; return the best point and them."""
    evaluation = recipe.evaluation
    beside_slots = context.hub is not None and not evaluation.use_gpu
    options = {
        # slots hold what they train on as long as the sweep runs; on a small cluster nothing else is left
        "num_cpus": evaluation.num_cpus if context.hub is None else 0,
        # a task that asks for nothing would stay where the trial is: on the head, with those of all other trials. Nor does it
        # go into the placement group of the trial, which holds no CPU
        "scheduling_strategy": _near(outcome) if beside_slots else "DEFAULT",
    }
    arguments = {
        "recipe": validating(recipe),
        "prepared": context.prepared.folder,
        "base": context.prepared.base,
        "retain_only": context.prepared.retain_only,
        "adapter_folder": outcome.adapter,
        "folder": folder / "evaluation",
        "thresholds": list(context.thresholds),
        "cache": context.cache,
        "calibrates": True,
    }
    task = HelperTask(f"scoring trial {folder.name}", score_adapter, arguments, options=options)
    [reports] = run_tasks(recipe, [task], shared=folder)
    points = [(r.value("forget_unseen/rouge_l_recall"), r.value("model_utility_ratio")) for r in reports.values()]
    forgetting, utility = max(points, key=lambda point: sweep_score(recipe, *point))
    best = {FORGETTING: forgetting, UTILITY: utility, "probe/score": utility - forgetting}
    return best, tuple(report.gate_threshold for report in reports.values())


def _near(outcome: TrainOutcome) -> NodeAffinitySchedulingStrategy | str:
    """The node of rank 0; any other where that one is gone, as in a sweep that is continued on another cluster."""
    return NodeAffinitySchedulingStrategy(outcome.nodes[0], soft=True) if outcome.nodes else "DEFAULT"
