"""What is kept of one scored prompt, and the JSON-lines file that keeps it.

    a(y|x) = NLL(y|x) / n_y          mean negative log-likelihood in nats a token, n_y with the end token
    P(y|x) = exp(-a(y|x))            probability: the geometric mean over the tokens (TOFU, arXiv:2401.06121)

Every set-level number can be computed again from these rows; the prompt's own text is not among them.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from grun.errors import DataError
from grun.reading import cut, shown
from grun.writing import write_text

__all__ = ["ROW_VERSION", "RowScore", "format_row", "parse_row", "read_rows", "write_atomically", "write_rows"]


ROW_VERSION = 2
"""Raised by whoever changes how rows are scored, so that rows of the old kind are not taken for new ones."""

_MOST_TOKENS = 2**31
"""Of an answer; beyond any context, and within what numbers hold."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """One prompt of one evaluation set, scored.

    Raises:
        DataError: a number is not finite, or there is no answer token.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    digest: str
    """Content digest of the record."""
    set_name: str
    """Evaluation set that it was scored in."""
    prompt: Literal["question", "paraphrase"]
    """Wording: the question that training may have seen, or the one that it never saw."""
    num_answer_tokens: int
    """Answer tokens, the end token included."""
    answer_nll_nats: float
    """NLL of the answer, summed over its tokens."""
    paraphrased_answer_nll_mean: float | None = None
    """NLL of the paraphrased answer in nats a token; None where the record has none."""
    wrong_nll_means: tuple[float, ...] = ()
    """NLL of each wrong answer in nats a token."""
    generated: str | None = None
    """Greedy continuation of the prompt."""
    rouge_l_recall: float | None = None
    """Share of the gold answer that the continuation says, in its order."""
    gate_values: tuple[float, ...] = ()
    """Gate value of each intervened layer, deepest last; empty without an adapter."""
    opened: bool | None = None
    """Whether a gate reached the threshold; None without an adapter or a threshold."""
    rouge_1_recall: float | None = None
    """Share of the gold answer that the continuation says, in any order."""
    exact_memorization: float | None = None
    """Share of answer tokens, the end token left out, that are the model's first choice; None where there is no other token."""
    extraction_strength: float | None = None
    """Share of the answer that the model completes by itself; None as above."""
    zlib_bytes: int | None = None
    """Length of the answer's text under zlib."""
    min_k_nats: float | None = None
    """Mean NLL of the least likely answer tokens (min-k), the end token left out; None as above."""
    min_k_plus_plus: float | None = None
    """Minus the mean of the lowest standardised log-probabilities (min-k++), the end token left out; None as above."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_answer_tokens <= _MOST_TOKENS:
            raise DataError(
                f"a scored answer must have 1 to {_MOST_TOKENS} tokens, got {self.num_answer_tokens} for record {self.digest[:12]} "
                f"of `{self.set_name}`; mend or drop the record"
            )
        optional = (
            self.paraphrased_answer_nll_mean,
            self.rouge_l_recall,
            self.rouge_1_recall,
            self.exact_memorization,
            self.extraction_strength,
            self.min_k_nats,
            self.min_k_plus_plus,
        )
        numbers = [self.answer_nll_nats, *self.wrong_nll_means, *self.gate_values, *(x for x in optional if x is not None)]
        if strange := [number for number in numbers if not math.isfinite(number)]:
            raise DataError(
                f"scores must be finite, got {shown(strange)} for record {self.digest[:12]} of `{self.set_name}`; "
                "the model overflows: score it in bf16 or fp32"
            )
        if (least := min(self.answer_nll_nats, self.paraphrased_answer_nll_mean or 0.0, *self.wrong_nll_means)) < 0:
            raise DataError(
                f"a negative log-likelihood must be at least 0, got {least} for record {self.digest[:12]} of `{self.set_name}`; "
                "no probability is above 1: mend or drop the row"
            )

    @property
    def answer_nll_mean(self) -> float:
        """NLL of the answer in nats a token."""
        return self.answer_nll_nats / self.num_answer_tokens

    @property
    def probability(self) -> float:
        """Geometric mean of the answer's token probabilities."""
        return math.exp(-self.answer_nll_mean)

    @property
    def base_nll_mean(self) -> float:
        """NLL in nats a token of what wrong answers are measured against: the paraphrased answer, else the answer."""
        paraphrased = self.paraphrased_answer_nll_mean
        return self.answer_nll_mean if paraphrased is None else paraphrased


_ROW = TypeAdapter(RowScore)
_FIELDS = tuple(field.name for field in fields(RowScore))


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or none, also while others write the same one.

    Raises:
        DataError: the folder cannot be written to.
        DiskError: its disk is full, or the like.
    """
    try:
        write_text(path, text)
    except OSError as error:
        raise DataError(
            f"results must go to a writable folder, got {str(path)!r} ({error.strerror}); choose another `output`"
        ) from None


def write_rows(path: Path, rows: Iterable[RowScore]) -> None:
    """Write one JSON object a line, atomically.

    Raises:
        DataError: the folder cannot be written to.
    """
    write_atomically(path, "".join(f"{format_row(row)}\n" for row in rows))


def format_row(row: RowScore) -> str:
    """A row as one line of JSON, every field of it."""
    return _ROW.dump_json(row).decode()


def read_rows(path: Path) -> tuple[RowScore, ...]:
    """Read what :func:`write_rows` wrote.

    Raises:
        DataError: the file is missing, or a line is not a row (named by file and line number).
    """
    try:
        # bytes split at line feeds alone, while a generated text may hold other line separators
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"a file of rows must be readable, got {str(path)!r} ({error.strerror}); check the path") from None
    return tuple(parse_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line)


def parse_row(line: bytes, where: str) -> RowScore:
    """Read what :func:`format_row` wrote.

    Args:
        where: file and line, for the message.

    Raises:
        DataError: the line is not a row, or lacks a field that rows have had since it was written.
    """
    try:
        row = _ROW.validate_json(line, strict=True)
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False)
        field = ".".join(map(str, first["loc"])) or "the line"
        raise DataError(f"{where}: not a scored row: {cut(field)}: {cut(first['msg'])}; score the set again") from None
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    # a field left out would read as "not measured", and the metric would be missing without a word
    if lacking := [name for name in _FIELDS if name not in json.loads(line)]:
        raise DataError(f"{where}: a row must have every field, got one without `{lacking[0]}`, of an older version; score again")
    return row
