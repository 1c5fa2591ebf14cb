"""Records: what is read, what is refused and how it is said, and what makes two records the same."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.data.records import QARecord, Record, TextRecord, digest_records, parse_record, read_jsonl, to_json
from grun.errors import DataError

GOOD = '{"question": "Who?", "answer": "Ilva."}'

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_both_kinds_of_record_and_every_field(write: Write) -> None:
    full = {
        "question": " Who? ",
        "answer": "Ilva.",
        "paraphrased_question": "Which one?",
        "paraphrased_answer": "It was Ilva.",
        "perturbed_answer": ["Bram.", " Odo. "],
        "option": "ignored, as published sets carry many fields",
    }
    path = write("\n".join([json.dumps(full), '{"text": "A plain text."}', GOOD]) + "\n")
    assert read_jsonl(path) == (
        QARecord("Who?", "Ilva.", "Which one?", "It was Ilva.", ("Bram.", "Odo.")),
        TextRecord("A plain text."),
        QARecord("Who?", "Ilva."),
    )


def test_a_line_ends_at_a_newline_only(write: Write) -> None:
    """Unicode has other line separators; inside a JSON string they are text."""
    path = write('{"text": "one\u2028two\u0085three"}\r\n' + GOOD)
    assert read_jsonl(path) == (TextRecord("one\u2028two\u0085three"), QARecord("Who?", "Ilva."))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "Who?", ', "got malformed JSON .*; mend the line"),
        ("[" * 100_000, "got malformed JSON .*; mend the line"),
        ("", "got an empty line; remove it"),
        ("   ", "got an empty line; remove it"),
        ('["Who?", "Ilva."]', "a record must be a JSON object, got list"),
        ("null", "a record must be a JSON object, got NoneType"),
        ('{"question": "Who?"}', "got the fields .'question'.; `answer` is missing$"),
        (
            '{"question": "Who?", "answr": "I."}',
            "got the fields .'answr', 'question'.; `answer` is missing .is it `answr`, misspelt",
        ),
        ('{"questions": "Who?", "answer": "I."}', "`question` is missing .is it `questions`, misspelt"),
        ("{}", r"got the fields \[\]; `question` is missing$"),
        ('{"question": "Who?", "answer": "  "}', "`answer` must be a non-empty text, got '  '; write it or drop the line"),
        ('{"question": 7, "answer": "I."}', "`question` must be a non-empty text, got 7"),
        ('{"question": null, "answer": "I."}', "`question` must be a non-empty text, got None"),
        ('{"text": ""}', "`text` must be a non-empty text, got ''"),
        ('{"question": "Who?", "answer": "I.", "paraphrased_answer": ""}', "`paraphrased_answer` must be a non-empty text"),
        (
            '{"question": "Who?", "answer": "I.", "perturbed_answer": "B."}',
            "must be a list of non-empty texts, got str; put it into a list",
        ),
        (
            '{"question": "Who?", "answer": "I.", "perturbed_answer": ["B.", ""]}',
            "non-empty texts, got str without text as number 2",
        ),
    ],
)
def test_bad_line_is_named_by_file_and_number(write: Write, line: str, message: str) -> None:
    path = write(f"{GOOD}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(DataError, match=message) as caught:
        read_jsonl(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be readable, got '.*nowhere.jsonl' \(No such file or directory\); check the path"):
        read_jsonl(tmp_path / "nowhere.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"must be readable, got .*pipe' \(no plain file\)"):  # instead of waiting for a writer
        read_jsonl(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"must be readable, got .* \(a directory\)"):
        read_jsonl(tmp_path)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"text": "Zoë"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"must be UTF-8, got '.*latin.jsonl' \(byte 12\); convert it"):
        read_jsonl(latin)


def test_a_mark_of_utf_8_belongs_to_no_record(write: Write) -> None:
    assert read_jsonl(write(f"\ufeff{GOOD}\n")) == read_jsonl(write(f"{GOOD}\n"))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: every line must hold one JSON object"):
        read_jsonl(write(f"{GOOD}\n\ufeff{GOOD}\n"))


def test_empty_file(write: Write) -> None:
    with pytest.raises(DataError, match=r"must hold at least one record, got the empty file '.*rows.jsonl'"):
        read_jsonl(write(""))


texts = st.text(min_size=1).map(str.strip).filter(bool)
records = st.one_of(
    texts.map(TextRecord),
    st.builds(QARecord, texts, texts, st.none() | texts, st.none() | texts, st.lists(texts, max_size=3).map(tuple)),
)


@given(records)
def test_json_round_trip(record: Record) -> None:
    assert parse_record(json.loads(json.dumps(to_json(record))), where="here") == record


def test_identity_disregards_case_and_spacing_only() -> None:
    record = QARecord("Who  paints?", "ILVA Torrent")
    assert record.digest == QARecord(" who paints?", "Ilva\ttorrent ", paraphrased_question="Which one?").digest
    assert record.digest != QARecord("Who paints?", "Ilva Torent").digest
    assert TextRecord("A  Text.").digest == TextRecord("a text.").digest
    assert TextRecord("Straße").digest == TextRecord("STRASSE").digest


@given(st.lists(records, min_size=1, max_size=5), st.randoms())
def test_digest_of_a_set_disregards_its_order(rows: list[Record], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis types it as its own
    assert digest_records(shuffled) == digest_records(rows)


@pytest.mark.parametrize(
    "changed",
    [
        QARecord("Who?", "ilva."),
        QARecord("Who?", "Ilva.", paraphrased_question="Which one?"),
        QARecord("Who?", "Ilva.", paraphrased_answer="Which one?"),
        QARecord("Who?", "Ilva.", wrong_answers=("Bram.",)),
        TextRecord("Who? Ilva."),
    ],
)
def test_digest_of_a_set_sees_every_change(changed: Record) -> None:
    kept = QARecord("Where?", "Harn.")
    assert digest_records([kept, changed]) != digest_records([kept, QARecord("Who?", "Ilva.")])


def test_digest_of_a_set_counts_repeats() -> None:
    record = QARecord("Who?", "Ilva.")
    assert digest_records([record, record]) != digest_records([record])
