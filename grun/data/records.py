"""Records: question-answer pairs and plain texts, and the readers that bring them in from files.

A record is identified by the digest of its content; nothing here depends on row numbers, so a reordered file
is the same data. Readers refuse what they do not understand, with file and line.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.errors import DataError, near_miss

__all__ = ["QARecord", "Record", "TextRecord", "digest_records", "parse_record", "read_jsonl", "to_json"]


@dataclass(frozen=True, slots=True)
class QARecord:
    """A question and its answer, in the fields of the TOFU data set."""

    question: str
    answer: str
    paraphrased_question: str | None = None
    """The same question in other words; training never sees it, evaluation does."""
    paraphrased_answer: str | None = None
    """The same answer in other words: the base of the truth ratio."""
    wrong_answers: tuple[str, ...] = ()
    """Answers of the same form that are wrong; evaluation scores them, training never sees them."""
    alternative_answers: tuple[str, ...] = ()
    """Wrong answers that training may teach in place of the true one; none of them is among `wrong_answers`."""

    @property
    def key(self) -> str:
        """What makes two records the same piece of knowledge: the question and answer, regardless of case and spacing."""
        return " ".join(f"{self.question} {self.answer}".casefold().split())

    @property
    def digest(self) -> str:
        """SHA-256 of :attr:`key`, the identity of the record in splits and reports."""
        return hashlib.sha256(self.key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A plain text; its first part is the prompt and the rest the answer."""

    text: str

    @property
    def key(self) -> str:
        """The text, regardless of case and spacing."""
        return " ".join(self.text.casefold().split())

    @property
    def digest(self) -> str:
        """SHA-256 of :attr:`key`."""
        return hashlib.sha256(self.key.encode()).hexdigest()


Record = QARecord | TextRecord


def _text(values: Mapping[str, Any], field: str, where: str) -> str:
    value = values[field]
    if not isinstance(value, str) or not value.strip():
        shown = type(value).__name__ if isinstance(value, list | dict) else repr(value)  # these may hold text to be forgotten
        raise DataError(f"{where}: `{field}` must be a non-empty text, got {shown}; write it or drop the line")
    return value.strip()


def parse_record(values: Any, *, where: str) -> Record:
    """Turn one decoded JSON object into a record. Fields that are not ours are ignored, as published sets carry many.

    Args:
        where: file and line, for the message.

    Raises:
        DataError: not an object, a field missing, empty or of the wrong type.
    """
    if not isinstance(values, dict):
        raise DataError(f"{where}: a record must be a JSON object, got {type(values).__name__}; one object a line")
    if "text" in values and "question" not in values:
        return TextRecord(_text(values, "text", where))
    for field in ("question", "answer"):
        if field not in values:
            hint = next((f" (is it `{key}`, misspelt?)" for key in values if near_miss(str(key), [field])), "")
            raise DataError(
                f"{where}: a record needs `question` and `answer` (or `text`), got the fields {sorted(map(str, values))}; "
                f"`{field}` is missing{hint}"
            )
    optional = {
        field: _text(values, field, where)
        for field in ("paraphrased_question", "paraphrased_answer")
        if values.get(field) is not None
    }
    wrong = _texts(values, "perturbed_answer" if "perturbed_answer" in values else "wrong_answers", where)
    alternatives = _texts(values, "alternative_answers", where)
    if shared := set(wrong) & set(alternatives):
        raise DataError(
            f"{where}: `alternative_answers` must not hold answers that evaluation scores as wrong, got {len(shared)} of them; "
            "drop them from one of the two"
        )
    return QARecord(
        question=_text(values, "question", where),
        answer=_text(values, "answer", where),
        wrong_answers=wrong,
        alternative_answers=alternatives,
        **optional,
    )


def _texts(values: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """A list of texts that may be missing."""
    texts = values.get(field) or []
    if not isinstance(texts, list):
        raise DataError(f"{where}: `{field}` must be a list of non-empty texts, got {type(texts).__name__}; put it into a list")
    for number, item in enumerate(texts, start=1):
        if not isinstance(item, str) or not item.strip():
            raise DataError(
                f"{where}: `{field}` must be a list of non-empty texts, got {type(item).__name__} without text as number {number}; drop it"
            )
    return tuple(item.strip() for item in texts)


def to_json(record: Record) -> dict[str, Any]:
    """The inverse of :func:`parse_record`."""
    if isinstance(record, TextRecord):
        return {"text": record.text}
    values: dict[str, Any] = {"question": record.question, "answer": record.answer}
    if record.paraphrased_question is not None:
        values["paraphrased_question"] = record.paraphrased_question
    if record.paraphrased_answer is not None:
        values["paraphrased_answer"] = record.paraphrased_answer
    if record.wrong_answers:
        values["perturbed_answer"] = list(record.wrong_answers)
    if record.alternative_answers:
        values["alternative_answers"] = list(record.alternative_answers)
    return values


def read_jsonl(path: Path) -> tuple[Record, ...]:
    """Read one JSON object a line.

    Raises:
        DataError: the file is missing, not UTF-8, empty, or a line is malformed (named by file and line number).
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"a data file must be readable, got {str(path)!r} ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"a data file must be UTF-8, got {str(path)!r} (byte {error.start}); convert it") from None
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"a data file must hold at least one record, got the empty file {str(path)!r}")
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            raise DataError(f"{where}: every line must hold one JSON object, got an empty line; remove it")
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: every line must hold one JSON object, got malformed JSON ({error}); mend the line"
            ) from None
        records.append(parse_record(values, where=where))
    return tuple(records)


def digest_records(records: Iterable[Record]) -> str:
    """SHA-256 over the sorted full contents: the same for any order of the rows, another for any change of a word."""
    contents = sorted(json.dumps(to_json(record), sort_keys=True, ensure_ascii=False) for record in records)
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()
