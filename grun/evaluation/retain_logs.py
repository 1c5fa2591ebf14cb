"""Retain-only logs: the rows of a model that never saw the forget set, in a file that goes where that model cannot.

    line 1      header: versions, digests, prompt and generation settings
    line 2..    one scored row each, of the sets that forget quality and membership inference compare

Numbers of two models compare only where both were asked the same in the same way, so whoever reads the file says what
they expect, and any difference is refused.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt, ValidationError

from grun import __version__
from grun.config import PromptConfig
from grun.config.base import Config
from grun.errors import DataError
from grun.evaluation.scores import ROW_VERSION, RowScore, format_row, parse_row, write_atomically
from grun.reading import cut, parse_json, reason_of, shown

__all__ = ["RetainLogs", "RetainLogsHeader", "check_retain_logs", "read_retain_logs", "write_retain_logs"]

_AGAIN = "make them again with `pipelines/prepare.py`, where the retain-only model is"


class RetainLogsHeader(Config):
    """What the rows are of, and how they were scored."""

    schema_version: Literal[1] = 1
    """Layout of the file."""
    row_version: PositiveInt = ROW_VERSION
    """How rows are scored."""
    created_by: str = f"grun {__version__}"
    """Version of the code."""
    base_digest: str
    """Digest of the base that the retain-only model stands beside."""
    model_digest: str
    """Digest of the retain-only model."""
    dtype: str
    """Precision that it was scored in; for the record."""
    prompt: PromptConfig
    """How records became token ids."""
    max_new_tokens: PositiveInt
    """Longest generated answer in tokens; generation is greedy."""
    rows_sha256: str | None = None
    """SHA-256 over the lines of the rows; None in a file of a version before there was one."""
    sets: dict[str, str]
    """SHA-256 over the full contents of the records, by set."""


@dataclass(frozen=True)
class RetainLogs:
    """A file of retain-only logs, read."""

    header: RetainLogsHeader
    rows: tuple[RowScore, ...]


def write_retain_logs(path: Path, header: RetainLogsHeader, rows: Sequence[RowScore]) -> None:
    """Write the logs, atomically.

    Raises:
        DataError: the folder cannot be written to.
    """
    lines = "".join(f"{line}\n" for line in map(format_row, rows))
    sealed = header.model_copy(update={"rows_sha256": hashlib.sha256(lines.encode()).hexdigest()})
    write_atomically(path, f"{sealed.model_dump_json()}\n{lines}")


def read_retain_logs(path: Path) -> RetainLogs:
    """Read what :func:`write_retain_logs` wrote.

    Raises:
        DataError: the file is missing, of another version, or a line is malformed (named by file and line number).
    """
    try:
        first, _, rest = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise DataError(
            f"`evaluation.retain_logs` must be a readable file, got {str(path)!r} ({error.strerror}); check the path"
        ) from None
    try:
        values = parse_json(first)
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != 1:
            raise DataError(f"{path}:1: retain-only logs must be of schema version 1, got {shown(version)}; {_AGAIN}")
        header = RetainLogsHeader.model_validate_json(first, strict=True)
    except ValidationError as error:
        [problem, *_] = error.errors(include_url=False)
        field = ".".join(map(str, problem["loc"])) or "the line"
        raise DataError(f"{path}:1: not a header of retain-only logs: {cut(field)}: {cut(problem['msg'])}; {_AGAIN}") from None
    except ValueError as error:  # of json, UnicodeDecodeError among them
        raise DataError(f"{path}:1: not a header of retain-only logs: {reason_of(error)}; {_AGAIN}") from None
    # rows of another version lack fields or mean something else by them, so that is said first
    if header.row_version != ROW_VERSION:
        raise DataError(f"{path}:1: retain-only logs must hold rows of version {ROW_VERSION}, got {header.row_version}; {_AGAIN}")
    rows = tuple(parse_row(line, f"{path}:{n}") for n, line in enumerate(rest.split(b"\n"), start=2) if line)
    if header.rows_sha256 is not None and hashlib.sha256(rest).hexdigest() != header.rows_sha256:
        raise DataError(
            f"{path}: the rows of retain-only logs must be as they were written, got others; {_AGAIN}, or copy the file again"
        )
    return RetainLogs(header, rows)


def check_retain_logs(
    logs: RetainLogs,
    *,
    where: str,
    prompt: PromptConfig,
    max_new_tokens: int,
    sets: Mapping[str, str],
    prompts: Mapping[str, Sequence[tuple[str, str]]],
    base_digest: str | None,
) -> None:
    """Refuse logs of another request, base, prompt template or generation.

    Args:
        where: the file, for the message.
        sets: digests of the sets that the numbers are to be compared on.
        prompts: (record digest, wording) of every row that each of them needs.
        base_digest: digest of the base; None where it is not known yet.

    Raises:
        DataError: with what differs.
    """
    header = logs.header
    differing = [
        (f"`{name}`", value, found)
        for name, value, found in (
            ("prompt", prompt.model_dump(mode="json"), header.prompt.model_dump(mode="json")),
            ("max_new_tokens", max_new_tokens, header.max_new_tokens),
            *((f"sets.{name}", digest, header.sets.get(name)) for name, digest in sets.items()),
            *((("base_digest", base_digest, header.base_digest),) if base_digest is not None else ()),
        )
        if value != found
    ]
    if differing:
        name, value, found = differing[0]
        raise DataError(
            f"{where}: retain-only logs must be of this request and recipe: {name} must be {value}, got {found}; {_AGAIN}"
        )
    known = {(row.set_name, row.digest, row.prompt) for row in logs.rows}
    lacking = [
        (name, digest) for name, asked in prompts.items() for digest, wording in asked if (name, digest, wording) not in known
    ]
    if lacking:
        name, digest = lacking[0]
        raise DataError(
            f"{where}: retain-only logs must have a row for every prompt, got none for {len(lacking)}, the first being record "
            f"{digest[:12]} of `{name}`; {_AGAIN}"
        )
