"""What runs on each Ray Train worker: recipe -> engine -> task -> fit, with checkpoints, probes and reports.

The run's folder on shared storage holds what outlives the workers: `metrics.jsonl` (each step, from which the driver
ships to MLflow), `checkpoints/`, `adapter/` (the result) and `STOP` (its presence asks the workers to finish early).
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.execution import context as ray_context

from grun.adapters import AdapterCard, save_adapter
from grun.config import Recipe
from grun.data.prompts import PromptEncoder
from grun.data.splits import Splits
from grun.errors import ClusterError, GrunError
from grun.lm import CachedPass, FullPass, PrefixCache, digest_weights, load_frozen_lm, resolve_folder
from grun.lm.frozen import count_parameters, read_shape
from grun.reading import shown
from grun.requests import UnlearningRequest
from grun.training import (
    Callback,
    Checkpoints,
    Engine,
    FitResult,
    Found,
    MetricsSpool,
    Progress,
    StopTraining,
    Task,
    TorchEngine,
    build_task,
    fit,
    gate_flags,
    gradient_flags,
    load_checkpoint,
    read_spool_lines,
    whole_steps,
)
from grun.writing import disk_error, seal, write_text
from pipelines.deepspeed_engine import DeepSpeedEngine, resident_share
from pipelines.entry import ERROR_FILE, OUTCOME_FILE, REPORTS_FILE, STOP_FILE
from pipelines.journal import append_entry
from pipelines.last_word import write_error
from pipelines.prepared import read_prepared
from pipelines.probe import Probe
from pipelines.shared_caches import at_hand
from pipelines.shortage import REMEDY_OF_WORKERS, is_shortage, shortage_message
from pipelines.watchdog import Watchdog, heeding

__all__ = ["Bench", "as_mendable", "build_engine", "recording_errors", "train_worker"]

_T = TypeVar("_T")


def train_worker(config: Mapping[str, Any]) -> None:
    """Train one adapter on this worker; rank 0 writes it to `<run_folder>/adapter`.

    Args:
        config: what :func:`pipelines.trainer.worker_config` gives, and `run_folder`.
    """
    run_folder = Path(config["run_folder"])
    if (run_folder / ERROR_FILE).is_file():
        return  # a worker found something wrong, and the group was started again
    with recording_errors(run_folder):
        bench = Bench.open(config)
        bench.train(Recipe.parse(config["recipe"]), run_folder, ray.train.report)


@contextmanager
def recording_errors(run_folder: Path) -> Iterator[None]:
    """Write an error that the user can mend to `error.json` and do not raise it: Ray would start the workers again, in vain.

    It may meet one worker alone: the others then end when they find the file, and workers that start again leave it at that.
    """
    with heeding(run_folder / ERROR_FILE):
        try:
            yield
        except Exception as error:
            mendable = as_mendable(error)
            if mendable is None:
                raise
            write_error(run_folder, mendable)


def as_mendable(error: Exception) -> GrunError | None:
    """What the user can mend of a worker's error, as memory or a disk that ran out; None for a defect."""
    if isinstance(error, GrunError):
        return error
    if is_shortage(error):
        return ClusterError(shortage_message(_name(), error, REMEDY_OF_WORKERS))
    return disk_error(error)


def _name() -> str:
    """This worker, for people."""
    return f"worker {torch.distributed.get_rank()} on {socket.gethostname()}"


def _by_rank_0(engine: Engine, act: Callable[[], _T]) -> _T:
    """What rank 0 does for all; what goes wrong there is raised on every worker, so that none waits for another in vain."""
    done: _T | GrunError | None = None
    if engine.rank == 0:
        try:
            done = act()
        except (GrunError, OSError) as error:
            done = as_mendable(error)
            if done is None:
                raise
    done = engine.gather(done)[0]
    if isinstance(done, GrunError):
        raise done
    return cast(_T, done)


@dataclass(frozen=True)
class Bench:
    """What a worker keeps between trainings: data, the base or its upper part, tokenised rows."""

    request: UnlearningRequest
    splits: Splits
    engine: Engine
    encoder: PromptEncoder
    base_folder: Path
    cache: Path | None = None
    """Folder of the prefix cache that is read."""

    @classmethod
    def open(cls, config: Mapping[str, Any]) -> Self:
        """Read the data and load the base, as the configuration of :func:`train_worker` says."""
        # Ray logs every report under a logger named after its file
        logging.getLogger(ray_context.__file__).setLevel(logging.WARNING)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        recipe = Recipe.parse(config["recipe"])
        request, splits = read_prepared(Path(config["prepared"]))
        cache = at_hand(recipe, Path(config["cache"]) if config["cache"] else None)
        engine = build_engine(recipe, config["base"], cache, every_cut=config.get("every_cut", False))
        encoder = PromptEncoder(engine.lm.tokenizer, recipe.prompt, context=engine.lm.context)
        return cls(request, splits, engine, encoder, resolve_folder(config["base"], recipe.model.revision), cache)

    def train(self, recipe: Recipe, run_folder: Path, report: Callable[[dict[str, Any]], None]) -> None:
        """Train one adapter from a pristine state, or from the last checkpoint of the same run.

        Args:
            report: called on every worker with the metrics of every `train.report_every` steps.
        """
        torch.manual_seed(recipe.seed)
        engine = self.engine
        task = build_task(recipe, self.splits, self.request, engine.lm, self.encoder)
        engine.cut_at(task.adapter.layers[0])
        checkpoints, spool = Checkpoints(run_folder / "checkpoints"), MetricsSpool(run_folder / "metrics.jsonl")
        found = _by_rank_0(engine, lambda: checkpoints.find(task.trajectory, at_most=whole_steps(spool.path)))
        if found.folder is not None:
            load_checkpoint(found.folder, task.adapter, task.optimizer, trajectory=task.trajectory)
        probe = Probe(recipe, self.splits, engine, self.encoder)
        # Ray, which asks workers for an answer, is to come first: it knows who hangs
        watchdog = Watchdog(f"{run_folder.name}: {_name()}", 3 * recipe.cluster.hang_seconds, run_folder)

        def report_unwatched(metrics: dict[str, Any]) -> None:
            with watchdog.paused():
                report(metrics)

        reporter = _Reporter(engine, task, probe, checkpoints, spool, recipe.train.report_every, run_folder, report_unwatched)
        callbacks: list[Callback] = [watchdog, *([_new_steps(spool)] if engine.rank == 0 else []), reporter]
        started = time.monotonic()
        if found.step and reporter.is_to_stop(found.step, task.optimizer.total_steps):
            result = FitResult(found.step, stopped_early=True)
        else:
            with watchdog.watching():
                result = fit(
                    engine,
                    task.adapter,
                    task.objective,
                    task.sampler,
                    task.optimizer,
                    read_layer=task.read_layer,
                    start=found.step,
                    callbacks=callbacks,
                )
        share = max(engine.gather(resident_share(engine.lm, count_parameters(self.base_folder))))
        where = engine.gather((socket.gethostname(), ray.get_runtime_context().get_node_id()))
        values = probe.gate_values(task.adapter)
        outcome = {
            "steps": result.steps,
            "total_steps": task.optimizer.total_steps,
            "stopped_early": result.stopped_early,
            "resident_share": share,
            # of a run that was interrupted, the time before it is not known
            "wall_seconds": round(time.monotonic() - started, 3) if not found.step else None,
            "num_workers": recipe.train.num_workers,
            "hosts": [host for host, _node in where],
            "nodes": [node for _host, node in where],
            "cache_bytes": sum(f.stat().st_size for f in self.cache.rglob("*") if f.is_file()) if self.cache else None,
            "gate_values": asdict(values),
        }

        def save() -> None:
            save_adapter(task.adapter, make_card(recipe, self.request, engine, task, result.steps), run_folder / "adapter")
            flags = _flags(recipe, spool.path, result.steps, found) | gate_flags(values, recipe.adapter.gate_threshold)
            write_text(run_folder / OUTCOME_FILE, seal({**outcome, "flags": flags}))

        _by_rank_0(engine, save)


def _flags(recipe: Recipe, spool: Path, steps: int, found: Found) -> dict[str, str]:
    """What is wrong with a training that has ended, its gates left aside."""
    lines = read_spool_lines(spool)
    norms = [line.metrics["train/grad_norm"] for _step, line in sorted(lines.items()) if "train/grad_norm" in line.metrics]
    flags = gradient_flags(norms, recipe.train.grad_clip)
    if found.note is not None:
        flags["checkpoint_damaged"] = found.note
    if lost := sorted(set(range(1, steps + 1)) - lines.keys()):
        flags["metrics_lost"] = (
            f"every step must have its metrics in {str(spool)!r}, got none that are whole for step(s) {shown(lost)[1:-1]}, and no checkpoint "
            "from before; the adapter is what it should be, its curves have a gap"
        )
    return flags


def _new_steps(spool: MetricsSpool) -> Callback:
    """A spool that gets each step once: a point of MLflow's is known by its time too, and a step that is done again has another."""
    known = read_spool_lines(spool.path).keys()

    def write(progress: Progress) -> None:
        if progress.step not in known:
            spool(progress)

    return write


def build_engine(recipe: Recipe, base: str, cache_folder: str | Path | None = None, *, every_cut: bool = False) -> Engine:
    """Load the base on this worker: sharded (DeepSpeed, stage 3) or whole; with a prefix cache, its upper part alone.

    Args:
        every_cut: load what any adapter that the cache serves needs, and not only the recipe's own.

    Raises:
        CacheError: the cache is damaged, or for another base.
    """
    model = recipe.model
    cache = cut = None
    if cache_folder is not None:
        folder = resolve_folder(base, model.revision)
        # the driver, or whoever has fetched it, has read every byte; here it is only opened
        cache = PrefixCache.open(Path(cache_folder), verify=False)
        cache.check_base(digest_weights(folder), model.dtype)
        cut = cache.spec.cut if every_cut else min(recipe.adapter.resolve_layers(read_shape(folder).num_layers))
    if recipe.train.engine == "deepspeed" and recipe.train.zero_stage == 3:
        return DeepSpeedEngine(model, base, cache, cut)
    buckets = recipe.train.length_buckets
    device = ray.train.torch.get_device() if recipe.train.use_gpu else "cpu"
    lm = load_frozen_lm(base, revision=model.revision, dtype=model.dtype, pad_token=model.pad_token, device=device, cut=cut)
    return TorchEngine(FullPass(lm, buckets) if cache is None else CachedPass(lm, cache))


def make_card(recipe: Recipe, request: UnlearningRequest, engine: Engine, task: Task, steps: int) -> AdapterCard:
    """The provenance of a trained adapter."""
    info = engine.lm.info
    return AdapterCard(
        adapter=recipe.adapter.model_copy(update={"layers": task.adapter.layers}),
        hidden_size=engine.lm.hidden_size,
        num_layers=engine.lm.num_layers,
        base_name=info.name,
        base_revision=info.revision,
        base_digest=info.digest,
        base_dtype=recipe.model.dtype,
        base_pad_token=recipe.model.pad_token,
        request_ids=(request.id,),
        data_digests=request.data_digests,
        prompt=recipe.prompt,
        steps=steps,
    )


@dataclass(frozen=True)
class _Reporter:
    """Every few steps: probe, checkpoint, report, and stop if the driver asked for it."""

    engine: Engine
    task: Task
    probe: Probe
    checkpoints: Checkpoints
    spool: MetricsSpool
    every: int
    run_folder: Path
    report: Callable[[dict[str, Any]], None]

    def __call__(self, progress: Progress) -> None:
        if progress.step % self.every and not progress.is_last:
            return
        metrics = {**progress.metrics, **self.probe(progress.adapter), "step": progress.step}
        _by_rank_0(self.engine, lambda: self._save(progress, metrics))
        self.report(metrics)
        if self.is_to_stop(progress.step, progress.total_steps):
            raise StopTraining

    def _save(self, progress: Progress, metrics: Mapping[str, Any]) -> None:
        self.spool.flush()  # a checkpoint says that all before it is known
        # the report first: whoever goes on from the checkpoint does not come to this step again
        append_entry(self.run_folder / REPORTS_FILE, metrics)
        self.checkpoints.save(progress.adapter, progress.optimizer, step=progress.step, trajectory=self.task.trajectory)

    def is_to_stop(self, step: int, total_steps: int) -> bool:
        """Whether the driver has asked for an end; one worker looks, so that all of them stop in the same step."""
        asked = _by_rank_0(self.engine, (self.run_folder / STOP_FILE).exists)
        return asked and step < total_steps
