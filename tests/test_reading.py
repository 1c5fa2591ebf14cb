"""Reading with bounds: what JSON, YAML and files may not bring, and that what they may bring is what it always was."""

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from grun.reading import (
    MalformedError,
    check_tensor_file,
    digest_file,
    parse_json,
    parse_yaml,
    read_bytes,
    read_text,
    reason_of,
    shown,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
    max_leaves=10,
)


@given(values=plain)
def test_json_is_what_it_always_was(values: object) -> None:
    assert parse_json(json.dumps(values)) == values
    assert parse_json(json.dumps(values, ensure_ascii=False).encode()) == values


@given(values=plain)
def test_yaml_is_what_it_always_was(values: object) -> None:
    text = yaml.safe_dump(values)
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' twice in one object"),
        ("[NaN]", "NaN, which is no JSON number"),
        ("-Infinity", "-Infinity, which is no JSON number"),
        ("1e999", "beyond what a float holds"),
        ("1" * 400, "an integer of 1326 bits"),
        ("1" * 5000, "an integer of thousands of digits"),
        ('{"\\ud800": 1}', "half a surrogate pair"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting property name"),
        (b"\xff", "byte 0 is not UTF-8"),
        ("[1]".encode("utf-16"), "byte 0 is not UTF-8"),
        ("[1]".encode("utf-16-le"), "Expecting value"),
        ('["\ud800"]'.encode("utf-8", "surrogatepass"), "byte 2 is not UTF-8"),
    ],
)
def test_json_that_no_reader_takes(text: str | bytes, why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &a [1]\n", "an anchor or alias in line 1"),
        ("a: 1\n\nb: *a\n", "an anchor or alias in line 3"),
        ("a: {b: 1, b: 2}", "the key 'b' twice"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("- " * 20_000, "nested too deeply"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("!!bool x", "KeyError"),
        ("!!timestamp x", "AttributeError"),
        ('!!int ""', "IndexError"),
        ("9" * 400, "an integer of 1329 bits"),
        ("? [1]\n: 2", "unhashable key"),
        ("a\x00b", "unacceptable character|control characters"),
    ],
)
def test_yaml_that_no_reader_takes(text: str, why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        parse_yaml(text)


def test_a_file_is_not_read_beyond_what_makes_sense(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no space, and no memory holds it
    with pytest.raises(MalformedError, match="1099511627776 bytes, and at most 100 make sense"):
        read_bytes(path, limit=100)


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"\xff")
    for place in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(MalformedError, match="no plain file"):
            read_bytes(place, limit=100)
        with pytest.raises(MalformedError, match="no plain file"):
            digest_file(place)
    with pytest.raises(OSError, match="symbolic links"):
        read_bytes(tmp_path / "link", limit=100, owned=True)
    assert read_bytes(tmp_path / "link", limit=100) == b"\xff"
    with pytest.raises(MalformedError, match="byte 0 is not UTF-8"):
        read_text(tmp_path / "file", limit=100)
    with pytest.raises(MalformedError, match="null byte"):
        read_bytes(Path("a\0b"), limit=100)


@pytest.mark.parametrize("length", [2**62, 2**21, 11])
def test_a_header_longer_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + b"{}        ")
    with pytest.raises(MalformedError, match=f"a header of {length} bytes in a file of 18"):
        check_tensor_file(tmp_path / "x")
    (tmp_path / "x").write_bytes((10).to_bytes(8, "little") + b"{}        ")
    check_tensor_file(tmp_path / "x")


def test_messages_quote_a_little() -> None:
    assert shown("x" * 300) == f"'{'x' * 199}... (302 characters)"
    assert reason_of(ValueError("a\n b")) == "a b"
    assert reason_of(KeyError()) == "KeyError"
