"""One Ray Train run: a recipe, a prepared request and a folder in; a trained adapter out. Used by `train` and by every trial."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from grun.adapters import read_card
from grun.config import Recipe
from grun.errors import AdapterError, ConfigError, TrainingError
from grun.reading import MalformedError, read_text, reason_of, shown
from grun.training.health import GateValues, gate_flags
from grun.writing import seal, telling, unseal, write_text
from pipelines.console import note
from pipelines.deaths import TellOfDeaths, cause_of_death
from pipelines.entry import OUTCOME_FILE, run_worker
from pipelines.last_word import forget_error, read_error
from pipelines.prepared import Prepared
from pipelines.run_groups import free_group

__all__ = [
    "CLAIM_FILE",
    "TrainOutcome",
    "claim_folder",
    "deciding_settings",
    "fit_workers",
    "has_ended",
    "read_claim",
    "read_outcome",
    "run_beside_signals",
    "total_steps",
    "train_on_ray",
    "worker_config",
]

_Result = TypeVar("_Result")

CLAIM_FILE = "recipe.json"
"""In a run's or sweep's folder: the settings that it was started with."""

_MAX_FILE = 2**22
"""Bytes of a claim or an outcome."""

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
    flags: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with it although it ran to the end, by name; of its gates at the recipe's threshold."""
    gate_values: GateValues = field(default_factory=GateValues)
    """What the gates said after training."""

    def flags_at(self, threshold: float | None) -> dict[str, str]:
        """What is wrong with it at the gate threshold that it is served with."""
        others = {name: flag for name, flag in self.flags.items() if not name.startswith("gate_")}
        return others | gate_flags(self.gate_values, threshold)


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
    claim = folder / CLAIM_FILE
    if claim.is_file():
        before = read_claim(folder)
        changed = sorted(name for name in identity if before.get(name) != identity[name])
        if changed:
            raise ConfigError(
                f"a run continues only with the settings it was started with, got other values in {changed} than the run in "
                f"{str(folder)!r}; choose another `name`, or delete that folder"
            )
        return
    with telling(claim):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(claim, seal(identity))


def read_claim(folder: Path) -> dict[str, Any]:
    """The settings that a run's folder was claimed with.

    Raises:
        ConfigError: they are not there as they were written.
    """
    claim = folder / CLAIM_FILE
    try:
        values = unseal(read_text(claim, limit=_MAX_FILE))
        if unknown := values.keys() - Recipe.model_fields.keys():
            raise MalformedError(f"{shown(sorted(unknown))}, which no recipe has")
        return values
    except (OSError, MalformedError) as error:
        raise ConfigError(
            f"the settings of a run must be as they were written, got {str(claim)!r}: {reason_of(error)}; if this is the recipe that the run "
            "was started with, delete that file and it goes on; if in doubt, choose another `name`"
        ) from None


def train_on_ray(
    recipe: Recipe, prepared: Prepared, folder: Path, *, name: str, cache: Path | None, callbacks: Sequence[Any] = ()
) -> TrainOutcome:
    """Train one adapter on `train.num_workers` Ray workers; continues an interrupted run of the same name and folder.

    Args:
        cache: a prefix cache that holds the request's rows and the adapter's placement; None: the whole base is run.

    Raises:
        GrunError: what a worker found wrong, or that the workers failed more often than `train.max_failures`.
    """
    if not has_ended(folder):
        forget_error(folder)
        _fit(recipe, prepared, folder, name, cache, callbacks)
    return read_outcome(folder)


def has_ended(folder: Path) -> bool:
    """Whether a training run has ended, well or badly.

    An outcome that is not as it was written, or whose adapter is not, is deleted: the last checkpoint makes both once more, in no
    step at all.
    """
    path = folder / OUTCOME_FILE
    if not path.is_file():
        return False
    try:
        read_card(_parse_outcome(folder).adapter)
    except AdapterError as error:
        damaged = f"the adapter of {str(folder)!r} is damaged ({error})"
    except (OSError, ValueError, TypeError) as error:
        damaged = f"{str(path)!r} is not as it was written ({reason_of(error)}) and is deleted"
    else:
        return True
    note(f"{damaged}; it is made anew from the last checkpoint")
    path.unlink()
    return False


def read_outcome(folder: Path) -> TrainOutcome:
    """Read how a training run ended.

    Raises:
        GrunError: what a worker found wrong.
        TrainingError: the outcome is missing or damaged.
    """
    if (error := read_error(folder)) is not None:
        raise error
    try:
        return _parse_outcome(folder)
    except (OSError, ValueError, TypeError) as reason:
        raise TrainingError(
            f"the outcome of a run must be as it was written, got {str(folder / OUTCOME_FILE)!r}: {reason_of(reason)}; delete it, and the "
            "same command makes it anew from the last checkpoint"
        ) from None


def _parse_outcome(folder: Path) -> TrainOutcome:
    outcome = unseal(read_text(folder / OUTCOME_FILE, limit=_MAX_FILE))
    outcome |= {name: tuple(outcome.get(name, ())) for name in ("hosts", "nodes")}
    values = {name: tuple(side) for name, side in outcome.pop("gate_values", {}).items()}
    return TrainOutcome(adapter=folder / "adapter", gate_values=GateValues(**values), **outcome)


def worker_config(recipe: Recipe, prepared: Prepared, cache: Path | None) -> dict[str, Any]:
    """What a worker needs to know; plain values, as they travel between processes."""
    return {
        # Ray Train gives each worker a working folder of its own
        "recipe": {**recipe.model_dump(mode="json"), "output": str(recipe.output.absolute())},
        "prepared": str(prepared.folder),
        "base": prepared.base,
        "cache": str(cache) if cache else None,
    }


def fit_workers(
    function: Callable[[Mapping[str, Any]], None],
    config: Mapping[str, Any],
    recipe: Recipe,
    *,
    name: str,
    storage: Path,
    max_failures: int,
    what: str | None = None,
    callbacks: Sequence[Any] = (),
) -> None:
    """Call a function on the recipe's workers, in a Ray Train run, until it has returned on each.

    Args:
        storage: of this run alone, on storage that every node sees.
        max_failures: how often a crashed group of workers is started again; -1 for ever.
        what: the run, for people; None: its name.

    Raises:
        ray.train.TrainingFailedError: the workers crashed more often.
    """
    train, hang = recipe.train, recipe.cluster.hang_seconds
    trainer = TorchTrainer(
        function,
        train_loop_config={**config, "storage": str(storage)},
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
    free_group(storage)
    trainer.fit()


def _fit(recipe: Recipe, prepared: Prepared, folder: Path, name: str, cache: Path | None, callbacks: Sequence[Any]) -> None:
    failures = recipe.train.max_failures
    config = {**worker_config(recipe, prepared, cache), "run_folder": str(folder)}
    fit = partial(
        fit_workers, run_worker, config, recipe, name=name, storage=folder / "ray", max_failures=failures, callbacks=callbacks
    )
    try:
        run_beside_signals(fit)
    except ray.train.TrainingFailedError as error:
        if (found := read_error(folder)) is not None:
            raise found from error
        died = cause_of_death(getattr(error, "worker_failures", None) or {0: error}, recipe.cluster.hang_seconds)
        raise TrainingError(
            f"training must survive with at most {failures} restart(s), got one more failure: {died}; "
            f"the last checkpoint is kept, and the same command continues from it"
        ) from error


def run_beside_signals(function: Callable[[], _Result]) -> _Result:
    """Call a function in a thread of its own where this is the main one: Ray Train and Tune take SIGINT for themselves in the main thread.

    Their handlers would end the process, or the work, in their own way, with neither a word nor a status that says interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    future: Future[_Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=call, name="train", daemon=True).start()
    return future.result()
