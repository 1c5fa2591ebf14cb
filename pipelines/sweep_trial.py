"""One trial of a sweep: a point of the space -> a Ray Train run -> its reports at every gate threshold."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grun.config import Recipe
from grun.errors import DiskError, GrunError
from grun.writing import disk_error
from pipelines.adapter_scoring import score_adapter
from pipelines.entry import FORGETTING, REPORTS_FILE, UTILITY, ReportToTune, with_objectives
from pipelines.journal import read_entries
from pipelines.last_word import forget_error, give_room_back, write_error
from pipelines.prepared import Prepared
from pipelines.slots import train_on_slot
from pipelines.sweep_record import TrialRecord, read_trials
from pipelines.sweep_search import TRIAL_KEY
from pipelines.tasks import HelperTask, run_tasks
from pipelines.trainer import TrainOutcome, read_outcome, train_on_ray
from tune_spaces import apply_point

__all__ = ["TrialContext", "make_trial", "sweep_score", "validating"]

_WORST = {FORGETTING: 1.0, UTILITY: 0.0, "probe/score": -1.0}


def validating(recipe: Recipe) -> Recipe:
    """The recipe that scores the rows a sweep chooses by; it does not choose by multiple-choice questions, so they are not asked."""
    return recipe.replace({"evaluation": {"part": "validation", "multiple_choice": None}})


def sweep_score(recipe: Recipe, forgetting: float, utility: float) -> float:
    """What a sweep chooses by. More utility than the base's is chance and not worth anything."""
    return recipe.sweep.utility_weight * min(utility, 1.0) - forgetting


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
    rungs: tuple[int, ...] = ()
    """Steps at which a trial on a slot waits for the verdict on its report."""

    def trial_folder(self, trial_id: str) -> Path:
        """Folder of a trial."""
        return self.folder / "trials" / trial_id


def make_trial(context: TrialContext) -> Callable[[Mapping[str, Any]], None]:
    """Return the function that Tune runs for each trial."""

    def trial(config: Mapping[str, Any]) -> None:
        record = _begin(context, config[TRIAL_KEY])
        if not record.done:
            folder = context.trial_folder(record.trial_id)
            with _keeping_disk_errors(folder):
                forget_error(folder)
                record = _run(context, record)
            give_room_back(folder)
        tune.report({**record.result, "step": record.total_steps + 1, "scored": True})

    return trial


def _begin(context: TrialContext, trial_id: str) -> TrialRecord:
    """The record of a trial that starts, or that goes on after an interruption."""
    record = next(record for record in read_trials(context.folder) if record.trial_id == trial_id)
    if not record.started:
        record = record.model_copy(update={"started": time.time()})
        record.write(context.trial_folder(trial_id))
    return record


def _run(context: TrialContext, record: TrialRecord) -> TrialRecord:
    """Train and score the point, and write down how it ended."""
    folder = context.trial_folder(record.trial_id)
    try:
        recipe = apply_point(context.recipe, record.point)
        outcome = _train(context, recipe, record.trial_id, folder)
        best, at, thresholds = _score(context, recipe, outcome, folder)
        ended: dict[str, Any] = {
            name: getattr(outcome, name) for name in ("steps", "total_steps", "stopped_early", "resident_share", "hosts")
        } | {"thresholds": thresholds, "flags": outcome.flags_at(at)}
    except DiskError:
        raise
    except GrunError as error:
        # a point that cannot be trained is a result of the search and not the end of it
        best, ended = _WORST, {"failure": f"{type(error).__name__}: {error}"}
    record = record.model_copy(update={**ended, "done": True, "result": best})
    record.write(folder)
    return record


@contextmanager
def _keeping_disk_errors(folder: Path) -> Iterator[None]:
    """Write down what a disk refused; it says nothing of the point, so the trial is not done, and runs again when the sweep goes on."""
    try:
        yield
    except Exception as error:
        cause = getattr(error, "cause", error)  # of a task
        told = cause if isinstance(cause, DiskError) else disk_error(cause)
        if told is not None:
            with suppress(OSError, DiskError):
                write_error(folder, told)
        raise


def _train(context: TrialContext, recipe: Recipe, trial_id: str, folder: Path) -> TrainOutcome:
    if context.hub is None:
        for metrics in read_entries(folder / REPORTS_FILE):  # those that Tune has seen change nothing
            tune.report(with_objectives(metrics))
        callbacks = [cast(Any, ReportToTune)()]
        return train_on_ray(recipe, context.prepared, folder, name=trial_id, cache=context.cache, callbacks=callbacks)
    for metrics in train_on_slot(context.hub, trial_id, recipe, folder, rungs=context.rungs):
        tune.report(with_objectives(metrics))
    return read_outcome(folder)


def _score(
    context: TrialContext, recipe: Recipe, outcome: TrainOutcome, folder: Path
) -> tuple[dict[str, float], float | None, tuple[float, ...]]:
    """Score the adapter at every threshold on validation rows, in a task beside the workers; return the best point, where, and them."""
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
    points = [(r.value("forget_unseen/rouge_l_recall"), r.value("model_utility_ratio"), r) for r in reports.values()]
    forgetting, utility, report = max(points, key=lambda point: sweep_score(recipe, *point[:2]))
    best = {FORGETTING: forgetting, UTILITY: utility, "probe/score": utility - forgetting}
    return best, report.gate_threshold, tuple(report.gate_threshold for report in reports.values())


def _near(outcome: TrainOutcome) -> NodeAffinitySchedulingStrategy | str:
    """The node of rank 0; any other where that one is gone, as in a sweep that is continued on another cluster."""
    return NodeAffinitySchedulingStrategy(outcome.nodes[0], soft=True) if outcome.nodes else "DEFAULT"
