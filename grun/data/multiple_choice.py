"""Multiple-choice questions from a local file in the layout of WMDP: one JSON object a line.

{"question": "...", "choices": ["...", "...", "...", "..."], "answer": 2}        answer counts from 0
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from grun.data.records import read_lines
from grun.errors import DataError
from grun.reading import shown

__all__ = ["ChoiceQuestion", "digest_questions", "read_multiple_choice"]

_FEWEST, _MOST = 4, len(ascii_uppercase)


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question with its options, in the order of the file."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right option, from 0."""

    @property
    def letters(self) -> str:
        """The letters of the options."""
        return ascii_uppercase[: len(self.choices)]

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        content = json.dumps([self.question, list(self.choices), self.answer], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


def digest_questions(questions: Iterable[ChoiceQuestion]) -> str:
    """SHA-256 over the contents, independent of their order."""
    return hashlib.sha256("\n".join(sorted(question.digest for question in questions)).encode()).hexdigest()


def read_multiple_choice(path: Path) -> tuple[ChoiceQuestion, ...]:
    """Read the questions. Fields that are not ours are ignored, as published sets carry more.

    Raises:
        DataError: the file is missing, not UTF-8, empty, or a line is malformed (named by file and line number).
    """
    questions = tuple(_parse(values, where) for where, values in read_lines(path))
    if not questions:
        raise DataError(f"a file of questions must hold at least one, got the empty file {str(path)!r}")
    return questions


def _parse(values: Any, where: str) -> ChoiceQuestion:
    if not isinstance(values, dict):
        raise DataError(f"{where}: a question must be a JSON object, got {type(values).__name__}; one object a line")
    for field in ("question", "choices", "answer"):
        if field not in values:
            raise DataError(
                f"{where}: a multiple-choice question needs `question`, `choices` and `answer`, got {shown(sorted(map(str, values)))}; "
                f"`{field}` is missing"
            )
    question, choices, answer = values["question"], values["choices"], values["answer"]
    if not _is_text(question):
        raise DataError(f"{where}: `question` must be a non-empty text, got {shown(question)}; write it or drop the line")
    if not isinstance(choices, list) or not _FEWEST <= len(choices) <= _MOST or not all(map(_is_text, choices)):
        raise DataError(
            f"{where}: `choices` must be a list of {_FEWEST} to {_MOST} non-empty texts, got {shown(choices)}; mend or drop the line"
        )
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(
            f"{where}: `answer` must be the index of the right choice, from 0 to {len(choices) - 1}, got {shown(answer)}; mend the line"
        )
    return ChoiceQuestion(question.strip(), tuple(choice.strip() for choice in choices), answer)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
