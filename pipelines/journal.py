"""Files of one JSON object a line that outlive whoever writes them: a line is there as a whole, or it is skipped."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grun.writing import telling

__all__ = ["append_entry", "read_entries"]


def append_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Append a line, and have it on the disk when this returns. One process writes a file at a time."""
    line = json.dumps(entry).encode() + b"\n"
    with telling(path), path.open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line  # whoever wrote the last line was killed in the middle of it
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that is there, in order; one that was cut off is nobody's."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry
