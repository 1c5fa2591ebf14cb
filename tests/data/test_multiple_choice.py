"""Multiple-choice questions from a file."""

import json
from pathlib import Path

import pytest

from grun.data.multiple_choice import ChoiceQuestion, digest_questions, read_multiple_choice
from grun.errors import DataError

GOOD = {"question": " Who keeps the lock? ", "choices": ["Bram", "Ilva ", "Odo", "Runa"], "answer": 2, "topic": "locks"}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def test_questions_keep_the_order_of_their_options(tmp_path: Path) -> None:
    five = {**GOOD, "choices": [*GOOD["choices"], "Sefa"], "answer": 4}  # type: ignore[misc] # a list
    first, second = read_multiple_choice(write(tmp_path, GOOD, five))
    assert first == ChoiceQuestion("Who keeps the lock?", ("Bram", "Ilva", "Odo", "Runa"), 2)
    assert (first.letters, second.letters, second.answer) == ("ABCD", "ABCDE", 4)


def test_digests_see_every_change_but_the_order_of_the_questions(tmp_path: Path) -> None:
    [question] = read_multiple_choice(write(tmp_path, GOOD))
    others = [
        ChoiceQuestion("Who?", question.choices, 2),
        ChoiceQuestion(question.question, question.choices, 1),
        ChoiceQuestion(question.question, question.choices[::-1], 2),
    ]
    assert len({q.digest for q in (question, *others)}) == 4
    assert digest_questions([question, *others]) == digest_questions([*others, question])
    assert digest_questions([question]) != digest_questions([question, question])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "every line must hold one JSON object, got malformed JSON"),
        ("", "every line must hold one JSON object, got an empty line; remove it"),
        ("[]", "a question must be a JSON object, got list"),
        ({"question": "Who?", "choices": GOOD["choices"]}, "`answer` is missing"),
        ({**GOOD, "question": " "}, "`question` must be a non-empty text, got ' '"),
        ({**GOOD, "choices": ["a", "b", "c"]}, "`choices` must be a list of 4 to 26 non-empty texts"),
        ({**GOOD, "choices": ["a", "b", "c", 4]}, "`choices` must be a list of 4 to 26 non-empty texts"),
        ({**GOOD, "choices": ["a"] * 27}, "`choices` must be a list of 4 to 26 non-empty texts"),
        ({**GOOD, "answer": 4}, "`answer` must be the index of the right choice, from 0 to 3, got 4"),
        ({**GOOD, "answer": -1}, "from 0 to 3, got -1"),
        ({**GOOD, "answer": "C"}, "from 0 to 3, got 'C'"),
        ({**GOOD, "answer": True}, "from 0 to 3, got True"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path, GOOD, line, GOOD)
    with pytest.raises(DataError, match=message) as caught:
        read_multiple_choice(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a data file must be readable, .*No such file.*check the path"):
        read_multiple_choice(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="must hold at least one, got the empty file"):
        read_multiple_choice(write(tmp_path))
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(DataError, match="must be UTF-8"):
        read_multiple_choice(tmp_path / "latin")
