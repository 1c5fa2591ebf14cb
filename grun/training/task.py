"""The task: everything of a training run that follows from recipe, data and base, and is the same on every worker."""

import hashlib
import json
import random
from dataclasses import dataclass

from grun.config import Recipe
from grun.data.batches import PairedSampler
from grun.data.prompts import PromptEncoder
from grun.data.records import Record
from grun.data.refusals import REFUSALS
from grun.data.splits import Splits
from grun.interventions import Adapter, build_adapter
from grun.lm import FrozenLM
from grun.objectives import Objective, build_objective, read_layer
from grun.requests import UnlearningRequest
from grun.training.augmentation import Augmentation, Forms
from grun.training.optimizer import AdapterOptimizer

__all__ = ["Task", "build_task", "forget_answers", "training_rows"]


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
        DataError: a record does not fit the context.
    """
    adapter = build_adapter(recipe.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=recipe.seed)
    objective = build_objective(recipe.objective)
    encoder = encoder or PromptEncoder(lm.tokenizer, recipe.prompt, context=lm.context)
    forget, retain = training_rows(recipe, splits, encoder)
    sampler = PairedSampler(
        forget,
        retain,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        pairing=recipe.train.pairing,
    )
    total_steps = recipe.train.epochs * sampler.steps_per_epoch
    return Task(
        adapter=adapter.to(lm.device),
        objective=objective,
        sampler=sampler,
        optimizer=AdapterOptimizer(adapter, recipe.train, total_steps=total_steps),
        read_layer=read_layer(recipe.objective, adapter.layers, num_layers=lm.num_layers),
        trajectory=_trajectory(recipe, request, lm),
    )


def forget_answers(recipe: Recipe, splits: Splits) -> list[tuple[Record, str | None]]:
    """The records to forget with the answer that training uses: a refusal drawn for each, or the record's own (None)."""
    rng = random.Random(recipe.seed)
    replaces = build_objective(recipe.objective).replaces_answers
    return [(record, rng.choice(REFUSALS) if replaces else None) for record in splits.forget]


def training_rows(recipe: Recipe, splits: Splits, encoder: PromptEncoder) -> tuple[list[Forms], list[Forms]]:
    """Everything that training may run: forget rows and retain rows, each in all its forms.

    Raises:
        DataError: a record does not fit the context.
    """
    augmentation = Augmentation(recipe.train.augmentation, seed=recipe.seed, retain=splits.retain)
    return (
        [augmentation.forms(encoder, record, answer=answer) for record, answer in forget_answers(recipe, splits)],
        [augmentation.forms(encoder, record) for record in splits.retain],
    )


def _trajectory(recipe: Recipe, request: UnlearningRequest, lm: FrozenLM) -> str:
    train = recipe.train.model_dump(
        mode="json",
        include={"epochs", "batch_size", "learning_rate", "warmup_steps", "weight_decay", "grad_clip", "pairing", "augmentation"},
    )
    decides = {
        "seed": recipe.seed,
        "base": lm.info.digest,
        "dtype": recipe.model.dtype,
        "data": request.data_digests,
        "prompt": recipe.prompt.model_dump(mode="json"),
        "adapter": recipe.adapter.model_dump(mode="json", exclude={"gate_threshold"}),
        "objective": recipe.objective.model_dump(mode="json"),
        "train": train,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
