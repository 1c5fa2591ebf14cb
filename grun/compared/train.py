"""Train a changed base: the step, the terms, the batches and the optimizer of an adapter's training, without a gate term."""

import torch

from grun.compared.base import ChangedBase
from grun.config import TrainConfig
from grun.training import AdapterOptimizer, Task, TorchEngine
from grun.training.step import forward

__all__ = ["train_changed"]


def train_changed(changed: ChangedBase, task: Task, config: TrainConfig, *, seed: int) -> int:
    """Train in place, and return the number of optimizer steps.

    Args:
        task: objective and batches; its adapter plays no part.
        config: learning rate, warm-up, decay and clipping; the task's own length stands.
        seed: of dropout.

    Raises:
        TrainingError: the loss is not finite, or a tensor learns nothing.
    """
    optimizer = AdapterOptimizer(changed, config, total_steps=task.optimizer.total_steps)
    engine = TorchEngine(changed.base(config.length_buckets))
    changed.lm.model.train()  # or nothing is dropped
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for step in range(optimizer.total_steps):
                inputs = forward(engine.base, None, task.sampler.batch(step), task.objective, read_layer=task.read_layer)
                output = task.objective(inputs, step + 1)
                engine.backward(output.loss)
                optimizer.step(engine, step, {"train/loss": output.loss, **output.terms})
    finally:
        changed.lm.model.eval()
    return optimizer.total_steps
