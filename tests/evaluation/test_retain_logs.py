"""Retain-only logs: what was written is read, and what does not fit is refused with the difference."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from grun.config import PromptConfig
from grun.errors import DataError
from grun.evaluation.retain_logs import RetainLogs, RetainLogsHeader, check_retain_logs, read_retain_logs, write_retain_logs
from grun.evaluation.scores import RowScore

HEADER = RetainLogsHeader(
    base_digest="b" * 64,
    model_digest="m" * 64,
    dtype="float32",
    prompt=PromptConfig(),
    max_new_tokens=48,
    sets={"forget": "f" * 64, "nonmembers": "n" * 64},
)
ROWS = tuple(
    RowScore(digest, name, "question", 2, 1.5, wrong_nll_means=(1.0, 2.0), min_k_nats=1.0)
    for name, digest in (("forget", "1"), ("forget", "2"), ("nonmembers", "3"))
)
EXPECTED: Mapping[str, Any] = {
    "where": "logs.jsonl",
    "prompt": PromptConfig(),
    "max_new_tokens": 48,
    "sets": dict(HEADER.sets),
    "prompts": {"forget": [("1", "question"), ("2", "question")], "nonmembers": [("3", "question")]},
    "base_digest": "b" * 64,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_retain_logs(tmp_path / "logs.jsonl", HEADER, ROWS)
    return tmp_path / "logs.jsonl"


def test_logs_survive_their_file_and_fit_what_they_were_made_for(path: Path) -> None:
    logs = read_retain_logs(path)
    assert logs == RetainLogs(HEADER.model_copy(update={"rows_sha256": logs.header.rows_sha256}), ROWS)
    check_retain_logs(logs, **EXPECTED)
    # fewer sets may be asked for, and a base that is still to be taught has no digest
    check_retain_logs(logs, **{**EXPECTED, "sets": {"forget": "f" * 64}, "base_digest": None})


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"prompt": PromptConfig(template="chat")}, "`prompt` must be {'template': 'chat'"),
        ({"max_new_tokens": 64}, "`max_new_tokens` must be 64, got 48"),
        ({"sets": {"forget": "0" * 64}}, f"`sets.forget` must be {'0' * 64}, got {'f' * 64}"),
        ({"sets": {"forget": "f" * 64, "others": "o" * 64}}, f"`sets.others` must be {'o' * 64}, got None"),
        ({"base_digest": "c" * 64}, f"`base_digest` must be {'c' * 64}, got {'b' * 64}"),
    ],
)
def test_logs_of_something_else_are_refused(change: Mapping[str, Any], difference: str) -> None:
    with pytest.raises(DataError) as caught:
        check_retain_logs(RetainLogs(HEADER, ROWS), **{**EXPECTED, **change})
    message = str(caught.value)
    assert message.startswith("logs.jsonl: retain-only logs must be of this request and recipe: ")
    assert difference in message
    assert message.endswith("make them again with `pipelines/prepare.py`, where the retain-only model is")


def test_a_missing_row_is_refused() -> None:
    with pytest.raises(DataError, match="got none for 1, the first being record 2 of `forget`"):
        check_retain_logs(RetainLogs(HEADER, (ROWS[0], ROWS[2])), **EXPECTED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, ":1: retain-only logs must be of schema version 1, got 2"),
        ({"schema_version": None}, "of schema version 1, got None"),
        ({"row_version": 1}, ":1: retain-only logs must hold rows of version 2, got 1"),
        ({"surprise": 1}, ":1: not a header of retain-only logs: surprise"),
        ({"base_digest": 7}, ":1: not a header of retain-only logs: base_digest"),
    ],
)
def test_another_version_or_a_damaged_header(path: Path, change: Mapping[str, Any], message: str) -> None:
    first, *rest = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]), encoding="utf-8")
    with pytest.raises(DataError, match=r"make them again with") as caught:
        read_retain_logs(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "no json", "[]", "\xff"])
def test_a_file_of_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "logs.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"logs\.jsonl:1: "):
        read_retain_logs(tmp_path / "logs.jsonl")


def test_a_damaged_row_is_named_by_its_line(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[2] = lines[2].replace('"num_answer_tokens":2', '"num_answer_tokens":0')
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"logs\.jsonl:3: a scored answer must have 1 to 2147483648 tokens, got 0"):
        read_retain_logs(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`evaluation.retain_logs` must be a readable file, got '.*none'"):
        read_retain_logs(tmp_path / "none")
