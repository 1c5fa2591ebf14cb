"""The task: everything of a training run that follows from recipe, data and base, and is the same on every worker."""

import hashlib
import json
from dataclasses import dataclass

from grun.config import Recipe
from grun.data.batches import PairedSampler
from grun.data.prompts import PromptEncoder
from grun.data.records import digest_records
from grun.data.splits import Splits
from grun.interventions import Adapter, build_adapter
from grun.lm import FrozenLM
from grun.objectives import Objective, build_objective, read_layer
from grun.requests import UnlearningRequest
from grun.training.optimizer import AdapterOptimizer
from grun.training.rows import training_rows

__all__ = ["Task", "build_task"]


@dataclass(frozen=True)
class Task:
    """An untrained adapter and all that trains it."""

    adapter: Adapter
    objective: Objective
    sampler: PairedSampler
    optimizer: AdapterOptimizer
    read_layer: int | None
    trajectory: str
    """Digest of everything that decides the trajectory: recipe, data and base, but not the number of workers."""


def build_task(
    recipe: Recipe, splits: Splits, request: UnlearningRequest, lm: FrozenLM, encoder: PromptEncoder | None = None
) -> Task:
    """Tokenise the training rows and build adapter, objective, sampler and optimizer.

    Args:
        encoder: of this base and the recipe's template; whoever trains often tokenises once.

    Raises:
        ConfigError: the adapter does not fit the base, or a term reads a block that it must not.
        DataError: a record does not fit the context, or has no answer of the kind that the objective teaches.
    """
    adapter = build_adapter(recipe.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=recipe.seed)
    objective = build_objective(recipe.objective)
    rows = training_rows(recipe, splits, encoder or PromptEncoder(lm.tokenizer, recipe.prompt, context=lm.context))
    sampler = PairedSampler(
        rows.forget,
        rows.retain,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        pairing=recipe.train.pairing,
        preferred=rows.preferred,
        environment=rows.environment,
    )
    total_steps = recipe.train.epochs * sampler.steps_per_epoch
    return Task(
        adapter=adapter.to(lm.device),
        objective=objective,
        sampler=sampler,
        optimizer=AdapterOptimizer(adapter, recipe.train, total_steps=total_steps),
        read_layer=read_layer(recipe.objective, adapter.layers, num_layers=lm.num_layers),
        trajectory=_trajectory(recipe, splits, request, lm),
    )


def _trajectory(recipe: Recipe, splits: Splits, request: UnlearningRequest, lm: FrozenLM) -> str:
    train = recipe.train.model_dump(
        mode="json",
        include={"epochs", "batch_size", "learning_rate", "warmup_steps", "weight_decay", "grad_clip", "pairing", "augmentation"},
    )
    decides = {
        "seed": recipe.seed,
        "base": lm.info.digest,
        "dtype": recipe.model.dtype,
        "data": request.data_digests,
        "environment": digest_records(splits.environment),
        "prompt": recipe.prompt.model_dump(mode="json"),
        "adapter": recipe.adapter.model_dump(mode="json", exclude={"gate_threshold"}),
        "objective": recipe.objective.model_dump(mode="json"),
        "train": train,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
