"""Train: one adapter, on Ray Train workers that share the frozen base by DeepSpeed; recorded and registered as candidate.

    python pipelines/train.py [--recipe FILE] [--field value]

The same command continues an interrupted run from its last checkpoint.
"""

import pipelines.first  # noqa: F401 - before what takes seconds to import

# isort: split

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from grun.adapters import read_card
from grun.config import Recipe
from grun.evaluation.figures import training_curves
from grun.training import Checkpoints, read_spool_lines
from pipelines.caching import check_unchanged, reading_cache
from pipelines.certifying import certificate_row, certified, check_calibration
from pipelines.checks import check_full_precision, check_storage
from pipelines.cli import next_step, parse_command
from pipelines.cluster import check_resources, connected
from pipelines.console import note, progress, summary
from pipelines.holding import holding
from pipelines.last_word import give_room_back
from pipelines.prepare import check, prepare
from pipelines.prepared import Prepared
from pipelines.recording import flag_rows, following, record_flags, record_request, register
from pipelines.running import run_command
from pipelines.tracking import Tracker
from pipelines.trainer import TrainOutcome, claim_folder, deciding_settings, has_ended, total_steps, train_on_ray

__all__ = ["main", "run_folder", "train", "trained"]

_SECTIONS = ("seed", "data", "prompt", "model", "adapter", "objective", "train")


def run_folder(recipe: Recipe) -> Path:
    """Folder of the recipe's training run."""
    return recipe.output.absolute() / "runs" / recipe.name


def train(recipe: Recipe, prepared: Prepared, tracker: Tracker) -> tuple[TrainOutcome, int]:
    """Train the recipe's adapter, certify it, record the run, and register the candidate. Needs a connected cluster.

    Returns:
        the outcome and the registered version.

    Raises:
        GrunError: what went wrong.
    """
    with trained(recipe, prepared, tracker) as (run_id, outcome):
        version = register(tracker, recipe, run_id, outcome.adapter, outcome.flags)
    return outcome, version


@contextmanager
def trained(
    recipe: Recipe, prepared: Prepared, tracker: Tracker, *, common: Prepared | None = None
) -> Iterator[tuple[str, TrainOutcome]]:
    """Train the recipe's adapter and certify it, within a run that ends when the context does. Needs a connected cluster.

    Args:
        common: data whose rows other requests train on as well (:func:`pipelines.caching.plan_cache`).

    Yields:
        the id of the run, and the outcome.

    Raises:
        GrunError: what went wrong.
    """
    folder = run_folder(recipe)
    with holding(folder):
        claim_folder(folder, recipe, sections=_SECTIONS)
        with reading_cache(recipe, prepared, [recipe], common=common) as cache:
            yield from _trained(recipe, prepared, tracker, cache)


def _trained(recipe: Recipe, prepared: Prepared, tracker: Tracker, cache: Path | None) -> Iterator[tuple[str, TrainOutcome]]:
    folder = run_folder(recipe)
    if not has_ended(folder) and (step := _continuing(folder)):
        note(f"continuing from step {step} of {total_steps(recipe, prepared)}")
    with tracker.run(recipe.name, key=f"train/{recipe.name}/{folder}", tags={"kind": "train"}) as run_id:
        tracker.log_params(run_id, deciding_settings(recipe, sections=_SECTIONS))
        record_request(tracker, run_id, prepared.request)
        spool = folder / "metrics.jsonl"
        with (
            progress("training", total_steps(recipe, prepared)) as advance,
            following(tracker, run_id, spool, advance),
        ):
            outcome = train_on_ray(recipe, prepared, folder, name=recipe.name, cache=cache)
        tracker.log_figure(run_id, training_curves(*read_spool(spool)), "figures/training.png")
        check_unchanged(recipe, cache, folder)
        threshold = recipe.adapter.gate_threshold
        certified(recipe, prepared, outcome.adapter, outcome.adapter, threshold=threshold, cache=cache)
        outcome = replace(outcome, flags=outcome.flags_at(read_card(outcome.adapter).adapter.gate_threshold))
        record_flags(tracker, run_id, outcome.flags)
        give_room_back(folder)
        yield run_id, outcome


def _continuing(folder: Path) -> int:
    """The step that an interrupted run goes on from; 0 for one that begins."""
    found = Checkpoints(folder / "checkpoints").find()
    if found.note is not None:
        note(found.note)
    return found.step


def read_spool(path: Path) -> tuple[list[int], dict[str, list[float]]]:
    """Read a spool as steps and one list of values per metric; of a step that was run twice, the last counts."""
    by_step = {step: line.metrics for step, line in read_spool_lines(path).items()}
    steps = sorted(by_step)
    names = by_step[steps[-1]].keys() if steps else ()
    return steps, {name: [by_step[step].get(name, float("nan")) for step in steps] for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    recipe, options = parse_command("Train one adapter, record it, and register it as the candidate.", argv)
    check_full_precision(recipe)
    prepared = check(recipe)
    check_storage(recipe)
    check_calibration(recipe, prepared, recipe.adapter.gate_threshold)
    with holding(run_folder(recipe)), connected(recipe):
        check_resources(recipe)
        tracker = Tracker.open(recipe.tracking, recipe.output)
        prepare(recipe, prepared)
        outcome, version = train(recipe, prepared, tracker)
    _steps, metrics = read_spool(run_folder(recipe) / "metrics.jsonl")
    summary(
        f"adapter for request {prepared.request.id}",
        {
            "adapter": str(outcome.adapter),
            "base": prepared.base,
            "steps": f"{outcome.steps} of {outcome.total_steps}",
            "workers": f"{recipe.train.num_workers}, each holding {outcome.resident_share:.0%} of the base's parameters",
            **{name: f"{values[0]:.4f} -> {values[-1]:.4f}" for name, values in metrics.items() if name.count("/") and values},
            **flag_rows(outcome.flags),
            **certificate_row(read_card(outcome.adapter).certificate),
            "registered": f"{recipe.registered_model} version {version}, alias candidate",
        },
        [
            next_step("evaluate", options.again, "score it"),
            next_step("promote", options.again, "judge it and move the champion"),
        ],
    )
    return 0


if __name__ == "__main__":
    run_command(main)
