"""Training rows in all their forms: the plain question and its wrapped variants, known before training starts.

A prefix cache has to hold every row that will be run, so the forms of a record are a finite list, the same wherever
it is made: on the driver that builds the cache and on every worker.
"""

from collections.abc import Sequence
from random import Random

from grun.config import AugmentationConfig
from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord, Record
from grun.data.wrappers import TRAINING_FAMILIES, wrap
from grun.errors import DataError

__all__ = ["Augmentation", "Forms"]

Forms = tuple[Example, ...]
"""A row in all its forms, the plain one first."""

_ATTEMPTS = 4
"""Draws of one variant before it is given up, where wrapped prompts do not fit the context."""


class Augmentation:
    """Gives a record all its forms."""

    def __init__(self, config: AugmentationConfig, *, seed: int, retain: Sequence[Record]) -> None:
        """Prepare the wrappers of a recipe.

        Args:
            retain: the records to keep, whose questions wrappers may quote.
        """
        self.config = config
        self.seed = seed
        self.others = [record.question for record in retain if isinstance(record, QARecord)]

    def forms(self, encoder: PromptEncoder, record: Record, *answers: str | None) -> tuple[Forms, ...]:
        """Tokenise a record in its plain form and in each variant; a variant that fits no context is left out.

        Args:
            answers: the answers that it is taken with; None is its own.

        Returns:
            by answer, the same forms of the question.

        Raises:
            DataError: the plain form is not what it should be.
        """
        plain = tuple(encoder.encode(record, answer=answer) for answer in answers)
        if not self.config.variants or not isinstance(record, QARecord):
            return tuple((example,) for example in plain)
        # each record starts elsewhere in the families, so that few variants a record still cover them all
        families = Random(f"families {self.seed} {record.digest}").sample(self.config.families, len(self.config.families))
        drawn = (
            self._variant(encoder, record, answers, families[index % len(families)], index)
            for index in range(self.config.variants)
        )
        return tuple(zip(plain, *(examples for examples in drawn if examples is not None), strict=True))

    def _variant(
        self, encoder: PromptEncoder, record: QARecord, answers: Sequence[str | None], family: str, index: int
    ) -> tuple[Example, ...] | None:
        """One variant with each answer."""
        for attempt in range(_ATTEMPTS):
            number = index + attempt * self.config.variants
            asked = wrap(
                TRAINING_FAMILIES[family],
                record.question,
                seed=self.seed,
                digest=record.digest,
                index=number,
                others=self.others,
            )
            try:
                return tuple(encoder.encode(record, question=asked, answer=answer) for answer in answers)
            except DataError:  # longer than the context
                continue
        return None
