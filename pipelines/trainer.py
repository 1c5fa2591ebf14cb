"""One Ray Train run: a recipe, a prepared request and a folder in; a trained adapter out. Used by `train` and by every trial."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from grun import errors
from grun.config import Recipe
from grun.errors import ConfigError, TrainingError
from pipelines.entry import ERROR_FILE, OUTCOME_FILE, run_worker
from pipelines.prepared import Prepared

__all__ = ["TrainOutcome", "claim_folder", "deciding_settings", "total_steps", "train_on_ray"]

_DECIDES_NOTHING = {
    "train": {"num_workers", "cpus_per_worker", "use_gpu", "engine", "zero_stage", "max_failures", "report_every", "probe_rows"},
    "sweep": {"max_concurrent", "max_failures"},
}


@dataclass(frozen=True)
class TrainOutcome:
    """How a training run ended."""

    adapter: Path
    steps: int
    total_steps: int
    stopped_early: bool
    resident_share: float
    """Largest share of the base's parameters that a worker held between steps."""


def total_steps(recipe: Recipe, prepared: Prepared) -> int:
    """Optimizer steps of a full run."""
    return recipe.train.epochs * -(-len(prepared.splits.forget) // recipe.train.batch_size)


def deciding_settings(recipe: Recipe, *, sections: Sequence[str]) -> dict[str, Any]:
    """The settings of some sections that decide what a run learns; where and how fast it runs is left out."""
    values = recipe.model_dump(mode="json", include=set(sections))
    return {
        name: {k: v for k, v in section.items() if k not in _DECIDES_NOTHING.get(name, ())}
        if isinstance(section, dict)
        else section
        for name, section in values.items()
    }


def claim_folder(folder: Path, recipe: Recipe, *, sections: Sequence[str]) -> None:
    """Create a run's folder, or check that the existing one was started with the same settings.

    Raises:
        ConfigError: a run of this name exists with other settings.
    """
    identity = deciding_settings(recipe, sections=sections)
    claim = folder / "recipe.json"
    if claim.is_file():
        before = json.loads(claim.read_text(encoding="utf-8"))
        changed = sorted(name for name in identity if before.get(name) != identity[name])
        if changed:
            raise ConfigError(
                f"a run continues only with the settings it was started with, got other values in {changed} than the run in "
                f"{str(folder)!r}; choose another `name`, or delete that folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    claim.write_text(json.dumps(identity, indent=2), encoding="utf-8")


def train_on_ray(
    recipe: Recipe, prepared: Prepared, folder: Path, *, name: str, cache: Path | None, callbacks: Sequence[Any] = ()
) -> TrainOutcome:
    """Train one adapter on `train.num_workers` Ray workers; continues an interrupted run of the same name and folder.

    Args:
        cache: a prefix cache that holds the request's rows and the adapter's placement; None: the whole base is run.

    Raises:
        GrunError: what a worker found wrong, or that the workers failed more often than `train.max_failures`.
    """
    if not (folder / OUTCOME_FILE).is_file():
        (folder / ERROR_FILE).unlink(missing_ok=True)
        _fit(recipe, prepared, folder, name, cache, callbacks)
    if (folder / ERROR_FILE).is_file():
        failure = json.loads((folder / ERROR_FILE).read_text(encoding="utf-8"))
        kind = getattr(errors, failure["type"], TrainingError)
        raise kind(failure["message"])
    outcome = json.loads((folder / OUTCOME_FILE).read_text(encoding="utf-8"))
    return TrainOutcome(adapter=folder / "adapter", **outcome)


def _fit(recipe: Recipe, prepared: Prepared, folder: Path, name: str, cache: Path | None, callbacks: Sequence[Any]) -> None:
    train = recipe.train
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "prepared": str(prepared.folder),
            "base": prepared.base,
            "cache": str(cache) if cache else None,
            "run_folder": str(folder),
        },
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers, use_gpu=train.use_gpu, resources_per_worker={"CPU": train.cpus_per_worker}
        ),
        # Ray annotates the first version of its API
        run_config=cast(Any, RunConfig)(
            name=name,
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=list(callbacks),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(
            f"training must survive with at most {train.max_failures} restart(s), got {_innermost(error)}; "
            f"the last checkpoint is kept, and the same command continues from it"
        ) from error


def _innermost(error: BaseException) -> str:
    """The worker's own exception in one line."""
    failures = getattr(error, "worker_failures", None)
    cause: BaseException = next(iter(failures.values())) if failures else error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    last = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {last[-1].strip() if last else ''}"
