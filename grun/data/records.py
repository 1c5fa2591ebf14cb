"""Records: question-answer pairs and plain texts, and the readers that bring them in from files.

A record is identified by the digest of its content; nothing here depends on row numbers, so a reordered file
is the same data. Readers refuse what they do not understand, with file and line.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.errors import DataError, near_miss
from grun.reading import MalformedError, check_text, open_plain, parse_json, reason_of, shown

__all__ = ["QARecord", "Record", "TextRecord", "digest_records", "parse_record", "read_jsonl", "read_lines", "to_json"]

_MAX_LINE = 2**24
"""Bytes of one record; a book of ten million characters is no record."""


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
        said = type(value).__name__ if isinstance(value, list | dict) else shown(value)  # these may hold text to be forgotten
        raise DataError(f"{where}: `{field}` must be a non-empty text, got {said}; write it or drop the line")
    return _whole(value, field, where)


def _whole(value: str, field: str, where: str) -> str:
    """A text without white space around it; a data set of the Hub may hold what no file of JSON gets past its reader."""
    try:
        return check_text(value.strip())
    except MalformedError as error:
        raise DataError(f"{where}: `{field}` must be a text, got {error}; mend or drop the line") from None


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
            hint = next((f" (is it `{key[:60]}`, misspelt?)" for key in values if near_miss(str(key), [field])), "")
            raise DataError(
                f"{where}: a record needs `question` and `answer` (or `text`), got the fields {shown(sorted(map(str, values)))}; "
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
    return tuple(_whole(item, field, where) for item in texts)


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
    records = tuple(parse_record(values, where=where) for where, values in read_lines(path))
    if not records:
        raise DataError(f"a data file must hold at least one record, got the empty file {str(path)!r}")
    return records


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Decode a file of JSON Lines, a line at a time.

    Yields:
        file and line, for messages, and what the line holds.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or a line is malformed or endless.
    """
    try:
        with open_plain(path) as file:
            start = 0
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), b""), start=1):
                yield f"{path}:{number}", _parse_line(line, f"{path}:{number}", path, start)
                start += len(line)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(f"a data file must be readable, got {str(path)!r} ({reason_of(error)}); check the path") from None


def _parse_line(line: bytes, where: str, path: Path, start: int) -> Any:
    if len(line) > _MAX_LINE:
        raise DataError(
            f"{where}: a line must have at most {_MAX_LINE} bytes, got more; one JSON object a line, and long texts in parts"
        )
    if not line.strip():
        raise DataError(f"{where}: every line must hold one JSON object, got an empty line; remove it")
    try:
        # editors of some systems mark a file as UTF-8 by its first character
        return parse_json((line if start else line.removeprefix(codecs.BOM_UTF8)).decode())
    except UnicodeDecodeError as error:
        raise DataError(f"a data file must be UTF-8, got {str(path)!r} (byte {start + error.start}); convert it") from None
    except MalformedError as error:
        raise DataError(f"{where}: every line must hold one JSON object, got malformed JSON ({error}); mend the line") from None


def digest_records(records: Iterable[Record]) -> str:
    """SHA-256 over the sorted full contents: the same for any order of the rows, another for any change of a word."""
    contents = sorted(json.dumps(to_json(record), sort_keys=True, ensure_ascii=False) for record in records)
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()
