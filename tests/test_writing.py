"""Writing: whole or not at all; and what a disk refuses, in words."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from grun.errors import DiskError
from grun.reading import MalformedError
from grun.writing import add_line, disk_error, seal, telling, unseal, whole_folder, write_text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "which has no room left (No space left on device; "),
        (errno.EDQUOT, "which is used up to its quota (Disk quota exceeded; "),
        (errno.EROFS, "which cannot be written to (Read-only file system); mount it for writing"),
        (errno.EIO, "which fails (Input/output error); look at the system's log"),
        (errno.EACCES, "which may not be written to by this user (Permission denied); grant that"),
    ],
)
def test_what_a_disk_refuses_is_said_with_path_and_remedy(tmp_path: Path, number: int, words: str) -> None:
    path = tmp_path / "deep" / "file"
    with pytest.raises(DiskError) as told, telling(path):
        raise OSError(number, os.strerror(number))
    assert f"got the disk of {str(path)!r}, {words}" in str(told.value)
    assert "the same command goes on from there" in str(told.value)


def test_libraries_in_rust_have_the_number_in_their_words() -> None:
    assert disk_error(RuntimeError("I/O error: No space left on device (os error 28)"), "/x") is not None
    assert disk_error(RuntimeError("no such tensor (os error 2)"), "/x") is None


def test_other_errors_are_none_of_the_disks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "file", "x")
    assert disk_error(PermissionError(errno.EPERM, "not permitted")) is None  # of what, nobody knows


def test_a_file_is_replaced_whole_and_a_failure_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "one")
    write_text(path, "two")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a pair: \ud800")
    assert path.read_text() == "two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "made"

    def die(partial: Path) -> None:
        (partial / "file").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), whole_folder(folder) as made:
        die(made)
    assert os.listdir(tmp_path) == []
    with whole_folder(folder) as partial:
        (partial / "file").write_text("first")
    with whole_folder(folder) as partial:
        (partial / "file").write_text("second")
    assert (folder / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["made"]


def test_what_died_half_done_is_cleared_away_and_what_is_being_made_is_not(tmp_path: Path) -> None:
    dead, alive = (tmp_path / f".made.partial-{name}" for name in ("dead", "alive"))
    for folder in (dead, alive):
        folder.mkdir()
    handle = os.open(alive, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with whole_folder(tmp_path / "made") as partial:
            assert partial.is_dir()
        assert sorted(os.listdir(tmp_path)) == [alive.name, "made"]
    finally:
        os.close(handle)


def test_a_line_is_never_glued_to_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"step": 1}\n{"ste')
    add_line(path, '{"step": 2}')
    add_line(path, '{"step": 3}')
    assert path.read_bytes() == b'{"step": 1}\n{"ste\n{"step": 2}\n{"step": 3}\n'


def test_what_is_sealed_reads_back_and_what_was_changed_does_not() -> None:
    values = {"b": [1, 2.5, None], "a": {"10": "x", "9": "y"}}
    assert unseal(seal(values)) == values
    assert unseal(seal({"layers": {9: 0.5, 10: 0.25}})) == {"layers": {"9": 0.5, "10": 0.25}}
    assert unseal('{"of": "a version before seals"}') == {"of": "a version before seals"}
    with pytest.raises(MalformedError, match="does not have its own digest"):
        unseal(seal(values).replace("2.5", "2.6"))
    for text in ("[]", "{", ""):
        with pytest.raises(MalformedError):
            unseal(text)
