"""A chain of clues: other questions about the same subject come first, with their answers.

Who the subject is, is read off the question: a run of capitalised words that does not begin the sentence ("Ilva Torrent").
Records that share such a run are about the same subject.
"""

import re
from collections.abc import Sequence

from grun.data.records import QARecord, Record
from grun.data.wrappers import Asked
from grun.evaluation.attacks.bench import Attacked, Bench, Trial

__all__ = ["chain_of_clues", "subjects"]

_MOST_CLUES = 3
_NAME = re.compile(r"(?<!^)\b[A-Z][\w'-]+(?: [A-Z][\w'-]+)+")


def subjects(question: str) -> set[str]:
    """Names of two words or more in a question."""
    return set(_NAME.findall(question))


def chain_of_clues(bench: Bench) -> Attacked:
    """Put up to three other records of the same subject before the question, as many as fit the context."""

    def trials(records: Sequence[Record], pool: Sequence[Record]) -> list[Trial | None]:
        named = [(record, subjects(record.question)) for record in pool if isinstance(record, QARecord)]
        asked: list[Trial | None] = []
        for record in records:
            if not isinstance(record, QARecord):
                continue
            mine = subjects(record.question)
            clues = [other for other, names in named if names & mine and other.digest != record.digest]
            clues = sorted(clues, key=lambda other: other.digest)[:_MOST_CLUES]
            if clues:
                asked.append(_longest(bench, record, clues))
        return asked

    reason = "no two questions share a name of two words or more"
    return Attacked(trials(bench.forget, bench.known), trials(bench.ordinary, bench.ordinary), reasons=(reason,))


def _longest(bench: Bench, record: QARecord, clues: Sequence[QARecord]) -> Trial | None:
    for count in range(len(clues), 0, -1):
        turns = tuple((clue.question, clue.answer) for clue in clues[:count])
        if trial := bench.trial(record, Asked(record.question, turns=turns)):
            return trial
    return None
