"""Files of one JSON object a line that outlive whoever writes them: a line is there as a whole, or it is skipped."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grun.writing import add_line, on_disk, telling

__all__ = ["append_entry", "read_entries"]


def append_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Append a line, and have it on the disk when this returns. One process writes a file at a time."""
    add_line(path, json.dumps(entry))
    with telling(path):
        on_disk(path)


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
