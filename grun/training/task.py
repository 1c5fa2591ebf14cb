"""The task: everything of a training run that follows from recipe, data and base, and is the same on every worker."""

import hashlib
import json
import random
from dataclasses import dataclass

from grun.config import Recipe
from grun.data.batches import PairedSampler
from grun.data.prompts import PromptEncoder
from grun.data.records import QARecord, Record, digest_records
from grun.data.refusals import REFUSALS
from grun.data.splits import Splits
from grun.errors import ConfigError, DataError
from grun.interventions import Adapter, build_adapter
from grun.lm import FrozenLM
from grun.objectives import AnswerSource, Objective, build_objective, read_layer
from grun.requests import UnlearningRequest
from grun.training.optimizer import AdapterOptimizer

__all__ = ["Task", "build_task", "forget_answers", "preferred_answers", "training_rows"]


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
    encoder = encoder or PromptEncoder(lm.tokenizer, recipe.prompt, context=lm.context)
    sampler = PairedSampler(
        [encoder.encode(record, answer=answer) for record, answer in forget_answers(recipe, splits)],
        [encoder.encode(record) for record in splits.retain],
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        pairing=recipe.train.pairing,
        preferred=[encoder.encode(record, answer=answer) for record, answer in preferred_answers(recipe, splits)],
        environment=[encoder.encode(record) for record in _environment(recipe, splits)],
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


def forget_answers(recipe: Recipe, splits: Splits) -> list[tuple[Record, str | None]]:
    """The records to forget with the answer that training uses: one drawn for each by the seed, or the record's own (None).

    Raises:
        DataError: an alternative is asked for, and a record brings none.
    """
    return _with_answers(recipe, splits, build_objective(recipe.objective).answers)


def preferred_answers(recipe: Recipe, splits: Splits) -> list[tuple[Record, str | None]]:
    """The records to forget, in the same order, with the answer that training prefers; empty where the objective compares none.

    Raises:
        DataError: as :func:`forget_answers`.
    """
    source = build_objective(recipe.objective).preferred
    return [] if source is None else _with_answers(recipe, splits, source)


def training_rows(recipe: Recipe, splits: Splits) -> list[tuple[Record, str | None]]:
    """Every record with an answer that training runs.

    Raises:
        ConfigError: the records of the objective's environment were never read.
        DataError: as :func:`forget_answers`.
    """
    as_they_are = (*splits.retain, *_environment(recipe, splits))
    return [
        *forget_answers(recipe, splits),
        *preferred_answers(recipe, splits),
        *((record, None) for record in as_they_are),
    ]


def _with_answers(recipe: Recipe, splits: Splits, source: AnswerSource) -> list[tuple[Record, str | None]]:
    rng = random.Random(recipe.seed)
    match source:
        case AnswerSource.OWN:
            return [(record, None) for record in splits.forget]
        case AnswerSource.REFUSAL:
            return [(record, rng.choice(REFUSALS)) for record in splits.forget]
        case AnswerSource.ALTERNATIVE:
            return [(record, rng.choice(_alternatives(recipe, splits, record))) for record in splits.forget]


def _alternatives(recipe: Recipe, splits: Splits, record: Record) -> tuple[str, ...]:
    """What a record may be answered with instead; the wrong answers that evaluation scores are none of these."""
    alternatives = record.alternative_answers if isinstance(record, QARecord) else ()
    if not alternatives:
        lacking = sum(not getattr(other, "alternative_answers", ()) for other in splits.forget)
        term = recipe.objective.forget
        chosen = f"`objective.forget.kind: {term.kind}`" + (" with `preferred: alternative`" if term.kind == "dpo" else "")
        raise DataError(
            f"{chosen} teaches alternative answers, so every record to forget must bring some, got {lacking} of "
            f"{len(splits.forget)} without (the first: digest {record.digest[:12]}); add `alternative_answers` to these records, or "
            "choose another objective, for instance `--objective.forget.kind idk`"
        )
    return alternatives


def _environment(recipe: Recipe, splits: Splits) -> tuple[Record, ...]:
    """The records of the environment that the objective names by file."""
    invariance = recipe.objective.invariance
    if invariance is None or invariance.path is None:
        return ()
    if not splits.environment:
        raise ConfigError(
            f"`objective.invariance.path` must be set before the data are prepared, got {invariance.path!r} afterwards; set it in the "
            "recipe, as no space can vary it"
        )
    return splits.environment


def _trajectory(recipe: Recipe, splits: Splits, request: UnlearningRequest, lm: FrozenLM) -> str:
    train = recipe.train.model_dump(
        mode="json", include={"epochs", "batch_size", "learning_rate", "warmup_steps", "weight_decay", "grad_clip", "pairing"}
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
