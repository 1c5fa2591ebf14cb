"""Give the first half of the answer away and let the model go on. Only the other half counts as leaked."""

from collections.abc import Sequence

from grun.data.records import QARecord, Record
from grun.evaluation.attacks.bench import Attacked, Bench, Trial

__all__ = ["divide", "partial_answer"]


def divide(answer: str) -> tuple[str, str]:
    """Split an answer after half of its words, rounded down; the first part is empty for a single word."""
    words = answer.split()
    half = len(words) // 2
    return " ".join(words[:half]), " ".join(words[half:])


def partial_answer(bench: Bench) -> Attacked:
    """Ask in the record's own words and begin the answer."""
    encoder = bench.encoder

    def trials(records: Sequence[Record]) -> list[Trial | None]:
        asked: list[Trial | None] = []
        for record in records:
            if not isinstance(record, QARecord):
                continue
            given, left = divide(record.answer)
            if given:
                begun = encoder.plain.tokenize(f" {given}", special=False)
                asked.append(bench.fitting(Trial(record, (*encoder.prompt_ids(record.question), *begun), left)))
        return asked

    return Attacked(trials(bench.forget), trials(bench.ordinary), reasons=("no answer has two words",))
