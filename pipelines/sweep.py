"""Sweep: Ray Tune over a space around the recipe; every trial is a Ray Train run; the best adapter becomes the candidate.

    python pipelines/sweep.py [--recipe FILE] [--field value]

The same command continues an interrupted sweep: finished trials stay, running ones go on from their checkpoints.
"""

import pipelines.first  # noqa: F401 - before what takes seconds to import

# isort: split

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray
from ray import tune

from grun.adapters import read_card
from grun.certificate import Certificate
from grun.config import Recipe
from grun.errors import DiskError, ModelError
from grun.writing import disk_error
from pipelines.caching import check_unchanged, reading_cache
from pipelines.certifying import certified, check_calibration
from pipelines.checks import check_answers, check_full_precision, check_storage
from pipelines.cli import parse_command
from pipelines.cluster import asking_for_room, check_resources, connected
from pipelines.console import note, progress
from pipelines.entry import FORGETTING, UTILITY
from pipelines.holding import holding
from pipelines.prepare import check, prepare
from pipelines.prepared import Prepared
from pipelines.recording import record_flags, record_request, register
from pipelines.running import run_command
from pipelines.scoring import report_base
from pipelines.slots import open_slots
from pipelines.sweep_outcome import SweepOutcome, collect, flags_of
from pipelines.sweep_record import TrialRecord, mend_trials, read_trials, refused_by_disk
from pipelines.sweep_report import publish, show
from pipelines.sweep_scheduler import make_scheduler, rungs_of
from pipelines.sweep_search import TrialSearch, num_trials
from pipelines.sweep_tracking import following_trials
from pipelines.sweep_trial import TrialContext, make_trial, validating
from pipelines.tracking import Tracker
from pipelines.trainer import claim_folder, deciding_settings, has_ended, run_beside_signals, total_steps
from tune_spaces import Space, apply_point, find_space

__all__ = ["check_utility", "main", "sweep", "sweep_folder", "warm_slots"]

_SECTIONS = ("seed", "data", "prompt", "model", "adapter", "objective", "train", "calibration", "sweep")

_NEEDS_NEW_WORKERS = ("data.", "prompt.", "model.", "train.num_workers", "train.engine", "train.zero_stage", "train.use_gpu")
"""Fields that a slot's workers have settled when they loaded the base."""

# the trial's own process waits for its workers and needs no CPU; reserving one would starve a small cluster
_NO_CPU = {"node:__internal_head__": 0.001}


def sweep_folder(recipe: Recipe) -> Path:
    """Folder of the recipe's sweep."""
    return recipe.output.absolute() / "sweeps" / recipe.name


def sweep(recipe: Recipe, space: Space, prepared: Prepared, tracker: Tracker) -> tuple[SweepOutcome, int]:
    """Run or continue a sweep and register its best adapter. Needs a connected cluster.

    Returns:
        the outcome and the registered version.

    Raises:
        GrunError: what went wrong.
    """
    folder = sweep_folder(recipe)
    with holding(folder):
        claim_folder(folder, recipe, sections=_SECTIONS)
        _mend(folder)
        with reading_cache(recipe, prepared, space.variants(recipe), evaluates=True) as cache:
            return _sweep(recipe, space, prepared, tracker, cache)


def _sweep(recipe: Recipe, space: Space, prepared: Prepared, tracker: Tracker, cache: Path | None) -> tuple[SweepOutcome, int]:
    folder = sweep_folder(recipe)
    context = TrialContext(recipe, prepared, folder, space.thresholds, cache)
    done, count = sum(record.done for record in read_trials(folder)), num_trials(recipe, space)
    if done:
        note(f"continuing: {done} of {count} trials are done")
    num_slots = warm_slots(recipe, space) if done < count else 0
    rungs = rungs_of(recipe, count, total_steps(recipe, prepared))
    wanted = partial(_slots_by_now, recipe, folder, count) if recipe.sweep.max_concurrent else None
    with tracker.run(f"{recipe.name}-sweep", key=f"sweep/{recipe.name}/{folder}", tags={"kind": "sweep"}) as run_id:
        tracker.log_params(run_id, deciding_settings(recipe, sections=_SECTIONS))
        record_request(tracker, run_id, prepared.request)
        with (
            progress(f"sweeping {space.title}", count) as advance,
            following_trials(tracker, run_id, context, lambda trial: _announce(trial, advance)),
        ):
            if num_slots:
                with asking_for_room(recipe), open_slots(recipe, prepared, cache, folder, num_slots, wanted=wanted) as hub:
                    _tune(recipe, space, replace(context, hub=hub, rungs=rungs), count - done)
            elif done < count:
                _tune(recipe, space, context, count - done)
        tracker.end_children(run_id)
        check_unchanged(recipe, cache, folder)
        outcome = collect(recipe, folder, space.thresholds)
        chosen = outcome.chosen
        trained = context.trial_folder(chosen.trial.trial_id) / "adapter"
        adapter = certified(
            apply_point(recipe, chosen.trial.point),
            prepared,
            trained,
            folder / "best" / "adapter",
            threshold=chosen.threshold,
            cache=cache,
        )
        card = read_card(adapter)
        outcome = replace(
            _with_certificate(outcome, card.certificate), flags=flags_of(folder, outcome, card.adapter.gate_threshold)
        )
        record_flags(tracker, run_id, outcome.flags)
        publish(tracker, run_id, recipe, space, outcome, folder)
        version = register(tracker, recipe, run_id, adapter, outcome.flags)
    return outcome, version


def _mend(folder: Path) -> None:
    """Mend the records of trials that are damaged, and have those go on again whose outcome or adapter is."""
    for said in mend_trials(folder):
        note(said)
    for record in read_trials(folder):
        trial = folder / "trials" / record.trial_id
        if record.done and record.failure is None and not has_ended(trial):
            record.model_copy(update={"done": False}).write(trial)


def _with_certificate(outcome: SweepOutcome, certificate: Certificate | None) -> SweepOutcome:
    report = outcome.chosen.report.model_copy(update={"certificate": certificate})
    return replace(outcome, chosen=replace(outcome.chosen, report=report))


def check_utility(recipe: Recipe, prepared: Prepared) -> None:
    """Refuse a base without utility on validation rows: every trial would be trained, and none could be scored.

    Raises:
        ModelError: model utility is 0.
    """
    if report_base(validating(recipe), prepared)["model_utility"].value == 0:
        raise ModelError(
            "a sweep measures damage against the base's own model utility, which must not be 0, got a base that gives no answer "
            "of some utility set even partly right; name a base that knows the data, or other records to keep"
        )


def _announce(trial: TrialRecord, advance: Callable[[int], None]) -> None:
    """Say how a trial ended."""
    point = ", ".join(f"{path.rsplit('.', 1)[-1]} {value}" for path, value in trial.point.items())
    ended = "stopped early, " if trial.stopped_early else ""
    result = trial.failure or f"{ended}forget {trial.result[FORGETTING]:.3f}, utility {trial.result[UTILITY]:.3f}"
    note(f"trial {trial.trial_id} ({point or 'the recipe itself'}): {result}")
    advance(1)


def _tune(recipe: Recipe, space: Space, context: TrialContext, left: int) -> None:
    """Run the trials that are left, on Ray Tune. What it keeps itself is never read: how far a sweep is stands in its trials' folders.

    Raises:
        DiskError: a trial, or Tune itself, found no room.
    """
    path = context.folder / "tune"
    shutil.rmtree(path, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(make_trial(context), _NO_CPU),
        tune_config=tune.TuneConfig(
            num_samples=left,
            search_alg=TrialSearch(recipe, space, context.folder),
            scheduler=make_scheduler(recipe, context.folder, num_trials(recipe, space), total_steps(recipe, context.prepared)),
            max_concurrent_trials=recipe.sweep.max_concurrent or max(1, _groups(recipe)),
            trial_dirname_creator=lambda trial: trial.trial_id,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=path.name,
            storage_path=str(context.folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=recipe.sweep.max_failures),
        ),
    )
    # it tells with a traceback each what a trial found wrong, which is said below, and at the end of the command
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        results = run_beside_signals(tuner.fit)
    except Exception as error:
        if (told := refused_by_disk(context.folder) or _of_disk(error, path)) is not None:
            raise told from error
        raise
    if (told := refused_by_disk(context.folder)) is not None:
        raise told
    for trial in range(len(results)):
        if results[trial].error is not None:
            file = Path(results[trial].path) / "error.txt"
            note(f"a trial was given up for what nobody expected; it is in {file}, and the same command tries the trial again")


def _of_disk(error: BaseException, path: Path) -> DiskError | None:
    """What a disk refused to Tune itself, be it behind errors of Tune's own."""
    cause: BaseException | None = error
    while cause is not None:
        if (told := disk_error(cause, path)) is not None:
            return told
        cause = cause.__cause__ or cause.__context__
    return None


def warm_slots(recipe: Recipe, space: Space) -> int:
    """How many warm slots the sweep runs on: 0 where every trial has to start workers of its own."""
    if recipe.sweep.runner == "nested":
        return 0
    other = [path for path in space.dimensions if path.startswith(_NEEDS_NEW_WORKERS)]
    if other:
        note(f"every trial starts workers of its own, as the space varies {', '.join(f'`{path}`' for path in other)}")
        return 0
    slots = _slot_groups(recipe)
    if not slots:
        note("every trial starts workers of its own, as warm slots would leave no GPU to score with")
    return min(slots, recipe.sweep.max_concurrent or slots, num_trials(recipe, space))


def _slots_by_now(recipe: Recipe, folder: Path, count: int) -> int:
    """How many slots the trials that are left are worth on the cluster as it is."""
    left = count - sum(record.done for record in read_trials(folder))
    return min(_slot_groups(recipe), recipe.sweep.max_concurrent or 0, left)


def _slot_groups(recipe: Recipe) -> int:
    """How many slots the cluster holds; they hold their GPUs until the sweep ends, and scoring may want one beside them."""
    return _groups(recipe, gpus_kept=1 if recipe.evaluation.use_gpu else 0)


def _groups(recipe: Recipe, gpus_kept: int = 0) -> int:
    """How many groups of workers the cluster holds at a time."""
    have, train = ray.cluster_resources(), recipe.train
    groups = have.get("CPU", 0) // (train.num_workers * train.cpus_per_worker)
    if train.use_gpu:
        groups = min(groups, (have.get("GPU", 0) - gpus_kept) // train.num_workers)
    return max(0, int(groups))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    recipe, options = parse_command("Search a space around the recipe and register the best adapter as the candidate.", argv)
    space = find_space(recipe.sweep.space)
    check_full_precision(recipe)
    space.check(recipe)
    prepared = check(recipe)
    check_storage(recipe)
    for variant in space.variants(recipe):
        check_answers(variant, prepared.splits)
    check_calibration(recipe, prepared, min(space.thresholds))
    with holding(sweep_folder(recipe)), connected(recipe):
        check_resources(recipe)
        tracker = Tracker.open(recipe.tracking, recipe.output)
        prepare(recipe, prepared)
        check_utility(recipe, prepared)
        outcome, version = sweep(recipe, space, prepared, tracker)
    show(recipe, outcome, version, sweep_folder(recipe), base=prepared.base, again=options.again)
    return 0


if __name__ == "__main__":
    run_command(main)
