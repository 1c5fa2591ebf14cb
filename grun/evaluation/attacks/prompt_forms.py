"""The same question in other words, and in other forms: paraphrases and format shifts."""

from collections.abc import Callable, Sequence

from grun.data.records import QARecord, Record
from grun.data.wrappers import EVALUATION_FAMILIES, wrap
from grun.evaluation.attacks.bench import Attacked, Bench, Trial

__all__ = ["format_shift", "paraphrase"]

_DRAWS = 2
"""Members of a family that each question is put in."""


def paraphrase(bench: Bench) -> Attacked:
    """Ask with the paraphrased question, where a record has one."""

    def trials(records: Sequence[Record]) -> list[Trial | None]:
        return [
            bench.trial(record, record.paraphrased_question)
            for record in records
            if isinstance(record, QARecord) and record.paraphrased_question
        ]

    return Attacked(trials(bench.forget), trials(bench.ordinary), reasons=("no record has a paraphrased question",))


def format_shift(name: str) -> Callable[[Bench], Attacked]:
    """Put the question in the form of a family of evaluation."""
    family = EVALUATION_FAMILIES[name]

    def attack(bench: Bench) -> Attacked:
        def trials(records: Sequence[Record], draws: int) -> list[Trial | None]:
            return [
                bench.trial(record, wrap(family, record.question, seed=bench.seed, digest=record.digest, index=index))
                for record in records
                if isinstance(record, QARecord)
                for index in range(draws)
            ]

        return Attacked(trials(bench.forget, _DRAWS), trials(bench.ordinary, 1), reasons=("plain texts have no question",))

    return attack
