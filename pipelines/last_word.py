"""`error.json` in a run's folder: what was found wrong that starting its workers again would not mend.

Room for it is kept from before the workers start. So there is some, too, where the disk being full is what is to be said.
"""

import json
import os
from pathlib import Path

from grun import errors
from grun.errors import GrunError, TrainingError
from grun.reading import MalformedError, cut, parse_json, read_text
from grun.writing import on_disk, telling, write_text
from pipelines.entry import ERROR_FILE

__all__ = ["forget_error", "give_room_back", "read_error", "write_error"]

_ROOM = f".{ERROR_FILE}.room"
_BYTES = 8192
_MAX_MESSAGE = 2000
"""Characters; each may take three bytes and more."""


def forget_error(folder: Path) -> None:
    """Remove what an earlier try found wrong, and keep room for what this one may find.

    Raises:
        DiskError: there is not even room for that.
    """
    with telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_FILE).unlink(missing_ok=True)
    if not (folder / _ROOM).is_file():
        write_text(folder / _ROOM, " " * _BYTES)


def write_error(folder: Path, error: GrunError) -> None:
    """Say what is wrong; the first to do so is heard."""
    if (folder / ERROR_FILE).is_file():
        return
    text = json.dumps({"type": type(error).__name__, "message": cut(str(error), _MAX_MESSAGE)})
    try:
        with (folder / _ROOM).open("r+b") as file:  # in place, which takes nothing of the disk
            file.write(text.encode().ljust(_BYTES))
        on_disk(folder / _ROOM)
        os.replace(folder / _ROOM, folder / ERROR_FILE)
    except FileNotFoundError:
        if not (folder / ERROR_FILE).is_file():  # or another worker was first
            write_text(folder / ERROR_FILE, text)


def read_error(folder: Path) -> GrunError | None:
    """What was found wrong, if anything was."""
    try:
        failure = parse_json(read_text(folder / ERROR_FILE, limit=_BYTES * 4))
    except FileNotFoundError:
        return None
    except (OSError, MalformedError):
        return TrainingError(
            f"a worker found something wrong and what it wrote in {str(folder / ERROR_FILE)!r} is damaged; run again"
        )
    kind = getattr(errors, failure["type"], TrainingError)
    found: GrunError = kind(failure["message"])
    return found


def give_room_back(folder: Path) -> None:
    """A run has ended well and has nothing more to say."""
    (folder / _ROOM).unlink(missing_ok=True)
