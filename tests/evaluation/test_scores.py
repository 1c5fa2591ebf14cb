"""Scored rows and their file."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grun.errors import DataError, DiskError
from grun.evaluation.scores import RowScore, read_rows, write_rows

ROW = RowScore(
    digest="d" * 64,
    set_name="forget",
    prompt="question",
    num_answer_tokens=3,
    answer_nll_nats=2.6345004937,
    paraphrased_answer_nll_mean=1.0,
    wrong_nll_means=(1.5, 2.0),
    generated="two\u2028lines\x85\nand \u00e9",
    rouge_l_recall=0.5,
    gate_values=(0.25, 0.75),
    opened=True,
    rouge_1_recall=0.75,
    exact_memorization=1.0,
    extraction_strength=0.5,
    zlib_bytes=17,
    min_k_nats=2.5,
    min_k_plus_plus=-0.5,
)

finite = st.floats(min_value=0, allow_infinity=False)


def test_probability_is_the_geometric_mean_over_tokens() -> None:
    assert ROW.probability == pytest.approx(0.4155439761, rel=1e-9)


def test_the_truth_ratio_starts_from_the_paraphrase_where_there_is_one() -> None:
    bare = RowScore("d", "s", "question", 2, 3.0)
    assert (ROW.base_nll_mean, bare.base_nll_mean) == (1.0, 1.5)


def test_rows_survive_their_file_with_every_line_separator(tmp_path: Path) -> None:
    bare = RowScore("d", "s", "paraphrase", 1, 0.0)
    write_rows(tmp_path / "rows.jsonl", [ROW, bare])
    assert read_rows(tmp_path / "rows.jsonl") == (ROW, bare)
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("tokens", "nll", "wrong", "message"),
    [
        (0, 1.0, (), "must have 1 to 2147483648 tokens, got 0"),
        (10**400, 1.0, (), "must have 1 to 2147483648 tokens, got 1000"),
        (1, -1e4, (), r"must be at least 0, got -10000\.0"),
        (1, 1.0, (2.0, -3.0), r"must be at least 0, got -3\.0"),
    ],
)
def test_what_no_model_scores_is_refused(tokens: int, nll: float, wrong: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RowScore("d", "s", "question", tokens, nll, wrong_nll_means=wrong)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(), finite, st.lists(finite, max_size=3)), max_size=3))
def test_any_finite_row_survives(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[str, float, list[float]]]
) -> None:
    rows = tuple(
        RowScore("d", "s", "question", 1, nll, wrong_nll_means=tuple(wrong), generated=text) for text, nll, wrong in contents
    )
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [ROW])

    def full(*_paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskError, match="No space left"):
        write_rows(path, [])
    assert os.listdir(tmp_path) == ["rows.jsonl"]
    assert read_rows(path) == (ROW,)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"num_answer_tokens": "3"}, {"num_answer_tokens": 0}, {"digest": None}])
def test_a_malformed_line_is_named_by_file_and_number(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [ROW])
    good = path.read_text(encoding="utf-8")
    path.write_text(good + json.dumps(json.loads(good) | change) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: "):
        read_rows(path)


@pytest.mark.parametrize("field", ["rouge_1_recall", "exact_memorization", "zlib_bytes", "min_k_plus_plus", "generated"])
def test_a_row_of_an_older_version_is_named_and_not_read_as_unmeasured(tmp_path: Path, field: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [ROW, ROW])
    first, second = path.read_text(encoding="utf-8").strip().split("\n")
    values = json.loads(second)
    del values[field]
    path.write_text(f"{first}\n{json.dumps(values)}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: a row must have every field, got one without `{field}`.*score again"):
        read_rows(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be readable"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_overflowed_model_is_refused_at_its_first_row(bad: float) -> None:
    # of many scores, those that are not
    with pytest.raises(DataError, match=rf"scores must be finite, got \[{bad}\] for record"):
        RowScore("d", "s", "question", 1, 1.0, wrong_nll_means=(*(1.0,) * 1000, bad))
    with pytest.raises(DataError, match="scores must be finite"):
        RowScore("d", "s", "question", 1, bad)
