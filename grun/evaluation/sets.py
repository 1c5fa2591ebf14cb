"""Evaluation sets: which prompts an adapter is judged on, and in which role.

| set | role | prompts |
|---|---|---|
| `forget` | forget | the questions to forget, in the words that training saw |
| `forget_unseen` | forget_unseen | the same in other words, which training never saw |
| `holdout` | holdout | ordinary prompts that training never saw, in both wordings |
| each utility set | utility | the questions whose numbers make model utility |
| `nonmembers` | nonmember | questions that no model was ever taught; they serve membership inference and nothing else |
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord, Record, TextRecord
from grun.data.splits import Splits, in_part
from grun.evaluation.report import Role

__all__ = ["EvalPrompt", "EvalSet", "evaluation_sets"]


@dataclass(frozen=True)
class EvalPrompt:
    """One record, asked in one wording."""

    record: Record
    wording: Literal["question", "paraphrase"]

    @property
    def question(self) -> str | None:
        """The question in this wording; None for a text."""
        if isinstance(self.record, TextRecord):
            return None
        if self.wording == "question":
            return self.record.question
        return unseen_wording(self.record)

    @property
    def reference(self) -> str:
        """The gold answer as text, empty for a plain text (whose answer is defined by tokens)."""
        return self.record.answer if isinstance(self.record, QARecord) else ""

    @property
    def answers(self) -> tuple[str | None, ...]:
        """The answers that are scored: the record's own (None), its paraphrase, the wrong ones."""
        if isinstance(self.record, TextRecord):
            return (None,)
        paraphrase = () if self.record.paraphrased_answer is None else (self.record.paraphrased_answer,)
        return (None, *paraphrase, *self.record.wrong_answers)

    def encode(self, encoder: PromptEncoder, *, answer: str | None = None) -> Example:
        """Tokenise the prompt with the record's own answer or another one."""
        return encoder.encode(self.record, question=self.question, answer=answer)


def unseen_wording(record: QARecord) -> str:
    """The paraphrased question, or the question with a lead that training never saw where there is no paraphrase."""
    return record.paraphrased_question or f"Here is something I would like to know. {record.question}"


@dataclass(frozen=True)
class EvalSet:
    """Prompts of one role."""

    name: str
    role: Role
    prompts: tuple[EvalPrompt, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the prompts, independent of their order."""
        lines = sorted(f"{prompt.record.digest} {prompt.wording}" for prompt in self.prompts)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def evaluation_sets(splits: Splits, *, part: str = "all", max_rows: int | None = None) -> tuple[EvalSet, ...]:
    """Return the sets of a request.

    Args:
        part: `validation`, `test` or `all`; the forget set in its own words is the same in every part.
        max_rows: records per set, the first by content digest; None for all.
    """

    def records(rows: Sequence[Record]) -> list[Record]:
        # a set too small to be halved is judged whole
        chosen = [record for record in rows if in_part(record.digest, part)] or list(rows)
        return sorted(chosen, key=lambda record: record.digest)[:max_rows] if max_rows else chosen

    def prompts(rows: Sequence[Record], *wordings: Literal["question", "paraphrase"]) -> tuple[EvalPrompt, ...]:
        # a plain text has one wording
        return tuple(
            EvalPrompt(record, wording)
            for record in records(rows)
            for wording in (wordings if isinstance(record, QARecord) else wordings[:1])
        )

    sets = [
        EvalSet("forget", "forget", prompts(splits.forget, "question")),
        EvalSet("forget_unseen", "forget_unseen", prompts(splits.forget, "paraphrase")),
        EvalSet("holdout", "holdout", prompts(splits.holdout, "question", "paraphrase")),
        # TOFU takes plain probability on the retain set, and normalises it over the wrong answers elsewhere
        *(
            EvalSet(name, "retain" if name == "retain" else "utility", prompts(rows, "question"))
            for name, rows in splits.utility.items()
        ),
        EvalSet("nonmembers", "nonmember", prompts(splits.nonmembers, "question")),
    ]
    return tuple(evaluated for evaluated in sets if evaluated.prompts)
