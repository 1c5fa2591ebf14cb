"""The loop: fetch, forward, objective, backward, step. Everything else is a callback."""

from collections.abc import Sequence
from dataclasses import dataclass

from grun.data.batches import PairedSampler
from grun.interventions import Adapter
from grun.objectives import Objective
from grun.training.callbacks import Callback, Progress, StopTraining
from grun.training.engine import Engine
from grun.training.optimizer import AdapterOptimizer
from grun.training.step import forward

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """How training ended."""

    steps: int
    """Optimizer steps that are done."""
    stopped_early: bool
    """Whether a callback ended it."""


def fit(
    engine: Engine,
    adapter: Adapter,
    objective: Objective,
    sampler: PairedSampler,
    optimizer: AdapterOptimizer,
    *,
    read_layer: int | None = None,
    start: int = 0,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train an adapter in place.

    Args:
        read_layer: block whose output the objective reads, where it reads one.
        start: optimizer steps that a checkpoint has already done.

    Raises:
        TrainingError: the loss is not finite, or a tensor learns nothing.
    """
    for step in range(start, optimizer.total_steps):
        batch = sampler.batch(step, rank=engine.rank, world_size=engine.world_size)
        inputs = forward(engine.base, adapter, batch, objective, read_layer=read_layer, sum_=engine.sum_)
        output = objective(inputs, step + 1)
        engine.backward(output.loss)
        metrics = optimizer.step(engine, step, {"train/loss": output.loss, **output.terms})
        progress = Progress(step + 1, optimizer.total_steps, metrics, adapter, optimizer)
        try:
            for callback in callbacks:
                callback(progress)
        except StopTraining:
            return FitResult(step + 1, stopped_early=True)
    return FitResult(optimizer.total_steps, stopped_early=False)
