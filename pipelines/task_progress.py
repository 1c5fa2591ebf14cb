"""How far a helper task is: in a file of its own, written by the task and read by whoever waits for it."""

import json
from contextlib import suppress
from pathlib import Path

__all__ = ["read_share", "tell_progress"]


def tell_progress(file: Path | None, done: float, total: float) -> None:
    """Write down how much is done; without a file nobody asks."""
    if file is None:
        return
    with suppress(OSError):  # nothing is given up because nobody can be told of it, as on a full disk
        file.write_text(json.dumps({"done": done, "total": total}), encoding="utf-8")


def read_share(file: Path) -> float:
    """How far a task is, from 0 to 1."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not begun, or just being written
        return 0.0
    return float(min(1.0, values["done"] / max(1, values["total"])))
