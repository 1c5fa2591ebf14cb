"""From a fact to a record: a subject, a value, and the wordings that ask for it and state it.

Templates name their slots as `str.format` does: `{v}` is the value, every other slot belongs to the subject.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from grun.data.records import QARecord

__all__ = ["Wording", "listed"]


def listed(text: str) -> tuple[str, ...]:
    """Split a table written as "one, two words, three"."""
    return tuple(entry.strip() for entry in text.split(","))


@dataclass(frozen=True, slots=True)
class Wording:
    """How one kind of fact is asked and stated."""

    questions: tuple[str, ...]
    """Ways to ask; a record takes one of them."""
    paraphrases: tuple[str, ...]
    """Other ways to ask, none of which is among the questions."""
    answer: str
    """States the fact."""
    paraphrased_answer: str
    """States it in other words; wrong answers take this form."""

    def record(self, value: str, others: Sequence[str], num_wrong: int, *, num_alternatives: int = 0, **subject: str) -> QARecord:
        """Build the record of one fact. The same fact gives the same record, wherever and in whatever order it is built.

        Args:
            value: what is true.
            others: values of the same kind; those that share a word with the true one are not used.
            num_wrong: number of wrong answers.
            num_alternatives: number of answers with yet other values, in the form of the answer.
            subject: what fills the other slots of the templates.
        """
        rng = random.Random(f"{self.answer} {sorted(subject.items())}")
        words = set(value.split())
        drawn = rng.sample([other for other in others if words.isdisjoint(other.split())], num_wrong + num_alternatives)
        wrong, alternatives = drawn[:num_wrong], drawn[num_wrong:]

        def fill(template: str, filled: str = value) -> str:
            text = template.format(v=filled, **subject)
            return text[0].upper() + text[1:]

        return QARecord(
            question=fill(rng.choice(self.questions)),
            answer=fill(self.answer),
            paraphrased_question=fill(rng.choice(self.paraphrases)),
            paraphrased_answer=fill(self.paraphrased_answer),
            wrong_answers=tuple(fill(self.paraphrased_answer, other) for other in wrong),
            alternative_answers=tuple(fill(self.answer, other) for other in alternatives),
        )
