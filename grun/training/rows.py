"""Training rows: what training runs, tokenised, before it starts. The driver that builds a cache and every worker make the same."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from grun.config import Recipe
from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord, Record
from grun.data.refusals import REFUSALS
from grun.data.splits import Splits
from grun.errors import ConfigError, DataError
from grun.objectives import AnswerSource, build_objective
from grun.training.augmentation import Augmentation, Forms

__all__ = ["TrainingRows", "environment_records", "forget_answers", "preferred_answers", "training_rows"]


@dataclass(frozen=True)
class TrainingRows:
    """Everything that training may run."""

    forget: tuple[Forms, ...]
    retain: tuple[Forms, ...]
    preferred: tuple[Forms, ...]
    """The forget rows in the same forms with the answers that training prefers; empty where the objective compares none."""
    environment: tuple[Example, ...]
    """Rows that have nothing to do with the request."""

    def __iter__(self) -> Iterator[Example]:
        """Every row in every form."""
        for forms in (*self.forget, *self.retain, *self.preferred):
            yield from forms
        yield from self.environment


def training_rows(recipe: Recipe, splits: Splits, encoder: PromptEncoder) -> TrainingRows:
    """Tokenise what training runs.

    Raises:
        ConfigError: the records of the objective's environment were never read.
        DataError: a record does not fit the context, or has no answer of the kind that the objective teaches.
    """
    augmentation = Augmentation(recipe.train.augmentation, seed=recipe.seed, retain=splits.retain)
    taught, preferred = forget_answers(recipe, splits), preferred_answers(recipe, splits)
    beside = [[answer] for _, answer in preferred] or [[] for _ in taught]
    forget = [
        augmentation.forms(encoder, record, answer, *others) for (record, answer), others in zip(taught, beside, strict=True)
    ]
    return TrainingRows(
        forget=tuple(forms[0] for forms in forget),
        retain=tuple(augmentation.forms(encoder, record, None)[0] for record in splits.retain),
        preferred=tuple(forms[1] for forms in forget) if preferred else (),
        environment=tuple(encoder.encode(record) for record in environment_records(recipe, splits)),
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


def environment_records(recipe: Recipe, splits: Splits) -> tuple[Record, ...]:
    """The records of the environment that the objective names by file.

    Raises:
        ConfigError: they were never read.
    """
    invariance = recipe.objective.invariance
    if invariance is None or invariance.path is None:
        return ()
    if not splits.environment:
        raise ConfigError(
            f"`objective.invariance.path` must be set before the data are prepared, got {invariance.path!r} afterwards; set it in the "
            "recipe, as no space can vary it"
        )
    return splits.environment
