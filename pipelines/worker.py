"""What runs on each Ray Train worker: recipe -> engine -> task -> fit, with checkpoints and probes reported to Ray.

The run's folder on shared storage holds what outlives the workers: `metrics.jsonl` (each step, from which the driver
ships to MLflow), `adapter/` (the result) and `STOP` (its presence asks the workers to finish early).
"""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.execution import context as ray_context

from grun.adapters import AdapterCard, save_adapter
from grun.config import Recipe
from grun.errors import GrunError
from grun.lm import CachedPass, FullPass, PrefixCache, digest_weights, load_frozen_lm, resolve_folder
from grun.lm.frozen import count_parameters, read_shape
from grun.requests import UnlearningRequest
from grun.training import (
    Callback,
    Engine,
    MetricsSpool,
    Progress,
    StopTraining,
    Task,
    TorchEngine,
    build_task,
    fit,
    load_checkpoint,
    save_checkpoint,
)
from pipelines.deepspeed_engine import DeepSpeedEngine, resident_share
from pipelines.entry import ERROR_FILE, OUTCOME_FILE, STOP_FILE
from pipelines.prepared import read_prepared
from pipelines.probe import Probe

__all__ = ["train_worker"]


def train_worker(config: Mapping[str, Any]) -> None:
    """Train one adapter on this worker; rank 0 writes it to `<run_folder>/adapter`.

    An error that the user can mend is written to `error.json` and not raised: Ray would start the workers again, in vain.

    Args:
        config: `recipe` (dumped), `prepared` (folder), `base` (model folder), `cache` (folder or None), `run_folder`.
    """
    try:
        _train(config)
    except GrunError as error:
        if torch.distributed.get_rank() == 0:
            failure = {"type": type(error).__name__, "message": str(error)}
            (Path(config["run_folder"]) / ERROR_FILE).write_text(json.dumps(failure), encoding="utf-8")


def _train(config: Mapping[str, Any]) -> None:
    # Ray logs every report under a logger named after its file
    logging.getLogger(ray_context.__file__).setLevel(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    recipe = Recipe.parse(config["recipe"])
    run_folder = Path(config["run_folder"])
    request, splits = read_prepared(Path(config["prepared"]))
    engine = build_engine(recipe, config["base"], config["cache"])
    task = build_task(recipe, splits, request, engine.lm)
    start = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            start = load_checkpoint(Path(folder), task.adapter, task.optimizer, trajectory=task.trajectory)
    reporter = _Reporter(engine, task, Probe(recipe, splits, engine), recipe.train.report_every, run_folder)
    spool = [MetricsSpool(run_folder / "metrics.jsonl")] if engine.rank == 0 else []
    callbacks: list[Callback] = [*spool, reporter]
    result = fit(
        engine,
        task.adapter,
        task.objective,
        task.sampler,
        task.optimizer,
        read_layer=task.read_layer,
        start=start,
        callbacks=callbacks,
    )
    whole = None if engine.lm.cut is None else count_parameters(resolve_folder(config["base"], recipe.model.revision))
    share = max(engine.gather(resident_share(engine.lm, whole)))
    if engine.rank == 0:
        save_adapter(task.adapter, make_card(recipe, request, engine, task, result.steps), run_folder / "adapter")
        outcome = {
            "steps": result.steps,
            "total_steps": task.optimizer.total_steps,
            "stopped_early": result.stopped_early,
            "resident_share": share,
        }
        (run_folder / OUTCOME_FILE).write_text(json.dumps(outcome), encoding="utf-8")
    torch.distributed.barrier()


def build_engine(recipe: Recipe, base: str, cache_folder: str | None = None) -> Engine:
    """Load the base on this worker: sharded (DeepSpeed, stage 3) or whole; with a prefix cache, its upper part alone.

    Raises:
        CacheError: the cache is damaged, or for another base.
    """
    model = recipe.model
    cache = cut = None
    if cache_folder is not None:
        folder = resolve_folder(base, model.revision)
        # the driver has read every byte; here it is only opened
        cache = PrefixCache.open(Path(cache_folder), verify=False)
        cache.check_base(digest_weights(folder), model.dtype)
        cut = min(recipe.adapter.resolve_layers(read_shape(folder).num_layers))
    if recipe.train.engine == "deepspeed" and recipe.train.zero_stage == 3:
        return DeepSpeedEngine(model, base, cache, cut)
    device = ray.train.torch.get_device() if recipe.train.use_gpu else "cpu"
    lm = load_frozen_lm(base, revision=model.revision, dtype=model.dtype, pad_token=model.pad_token, device=device, cut=cut)
    return TorchEngine(FullPass(lm) if cache is None else CachedPass(lm, cache, recipe.cache.length_buckets))


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


class _Reporter:
    """Every few steps: probe, checkpoint, report to Ray, and stop if the driver asked for it."""

    def __init__(self, engine: Engine, task: Task, probe: Probe, every: int, run_folder: Path) -> None:
        self.engine = engine
        self.task = task
        self.probe = probe
        self.every = every
        self.run_folder = run_folder

    def __call__(self, progress: Progress) -> None:
        if progress.step % self.every and not progress.is_last:
            return
        metrics = {**progress.metrics, **self.probe(progress.adapter), "step": progress.step}
        with tempfile.TemporaryDirectory() as folder:
            if self.engine.rank == 0:
                save_checkpoint(
                    Path(folder), progress.adapter, progress.optimizer, step=progress.step, trajectory=self.task.trajectory
                )
            checkpoint = ray.train.Checkpoint.from_directory(folder) if self.engine.rank == 0 else None
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"step{progress.step:06d}")
        # one worker looks, so that all of them stop in the same step
        stop = self.engine.gather((self.run_folder / STOP_FILE).exists() if self.engine.rank == 0 else None)[0]
        if stop and not progress.is_last:
            raise StopTraining
