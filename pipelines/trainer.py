"""One Ray Train run: a recipe, a prepared request and a folder in; a trained adapter out. Used by `train` and by every trial."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from grun import errors
from grun.config import Recipe
from grun.errors import ConfigError, TrainingError
from pipelines.deaths import TellOfDeaths, cause_of_death
from pipelines.entry import ERROR_FILE, OUTCOME_FILE, run_worker
from pipelines.prepared import Prepared

__all__ = [
    "TrainOutcome",
    "claim_folder",
    "deciding_settings",
    "make_trainer",
    "read_outcome",
    "total_steps",
    "train_on_ray",
    "worker_config",
]

_DECIDES_NOTHING = {
    "train": {
        "num_workers",
        "cpus_per_worker",
        "use_gpu",
        "engine",
        "zero_stage",
        "length_buckets",
        "max_failures",
        "report_every",
        "probe_rows",
    },
    # adapters are trained on the full-precision base, whatever they are scored on
    "model": {"quantization", "decomposition", "decomposition_rank", "decomposition_rounds"},
    "sweep": {"max_concurrent", "max_failures", "runner"},
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
    wall_seconds: float | None = None
    """Seconds from the first step to the saved adapter; None for a run that was continued."""
    num_workers: int | None = None
    """Workers that trained it."""
    cache_bytes: int | None = None
    """Size of the prefix cache that they read; None without one."""
    hosts: tuple[str, ...] = ()
    """Names of the hosts that they ended on, by rank."""
    nodes: tuple[str, ...] = ()
    """Ray's ids of these nodes."""


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
    return read_outcome(folder)


def read_outcome(folder: Path) -> TrainOutcome:
    """Read how a training run ended.

    Raises:
        GrunError: what a worker found wrong.
    """
    if (folder / ERROR_FILE).is_file():
        failure = json.loads((folder / ERROR_FILE).read_text(encoding="utf-8"))
        kind = getattr(errors, failure["type"], TrainingError)
        raise kind(failure["message"])
    outcome: dict[str, Any] = json.loads((folder / OUTCOME_FILE).read_text(encoding="utf-8"))
    outcome |= {name: tuple(outcome.get(name, ())) for name in ("hosts", "nodes")}
    return TrainOutcome(adapter=folder / "adapter", **outcome)


def worker_config(recipe: Recipe, prepared: Prepared, cache: Path | None) -> dict[str, Any]:
    """What a worker needs to know; plain values, as they travel between processes."""
    return {
        # Ray Train gives each worker a working folder of its own
        "recipe": {**recipe.model_dump(mode="json"), "output": str(recipe.output.absolute())},
        "prepared": str(prepared.folder),
        "base": prepared.base,
        "cache": str(cache) if cache else None,
    }


def make_trainer(
    function: Callable[[Mapping[str, Any]], None],
    config: Mapping[str, Any],
    recipe: Recipe,
    *,
    name: str,
    storage: Path,
    max_failures: int,
    what: str | None = None,
    callbacks: Sequence[Any] = (),
) -> TorchTrainer:
    """A Ray Train run of the recipe's workers.

    Args:
        max_failures: how often a crashed group of workers is started again; -1 for ever.
        what: the run, for people; None: its name.
    """
    train, hang = recipe.train, recipe.cluster.hang_seconds
    return TorchTrainer(
        function,
        train_loop_config=dict(config),
        # later than all that notices who hangs; Ray's own half an hour is for workers that fetch a large cache first
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo", timeout_s=max(1800, int(4 * hang))),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers, use_gpu=train.use_gpu, resources_per_worker={"CPU": train.cpus_per_worker}
        ),
        # Ray annotates the first version of its API
        run_config=cast(Any, RunConfig)(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[TellOfDeaths(what or name, max_failures, hang), *callbacks],
        ),
    )


def _fit(recipe: Recipe, prepared: Prepared, folder: Path, name: str, cache: Path | None, callbacks: Sequence[Any]) -> None:
    failures = recipe.train.max_failures
    config = {**worker_config(recipe, prepared, cache), "run_folder": str(folder)}
    trainer = make_trainer(
        run_worker, config, recipe, name=name, storage=folder / "ray", max_failures=failures, callbacks=callbacks
    )
    try:
        _run_beside_signals(trainer.fit)
    except ray.train.TrainingFailedError as error:
        if (folder / ERROR_FILE).is_file():
            return
        died = cause_of_death(getattr(error, "worker_failures", None) or {0: error}, recipe.cluster.hang_seconds)
        raise TrainingError(
            f"training must survive with at most {failures} restart(s), got one more failure: {died}; "
            f"the last checkpoint is kept, and the same command continues from it"
        ) from error


def _run_beside_signals(function: Callable[[], object]) -> None:
    """Call a function in a thread of its own where this is the main one: Ray Train takes SIGINT for itself in the main thread.

    Its handler would end the process in its own way, with neither a word nor a status that says interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        function()
        return
    future: Future[object] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=call, name="train", daemon=True).start()
    future.result()
