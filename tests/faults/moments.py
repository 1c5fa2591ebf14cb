"""What happens to a disk at the moment when a function of ours is called, in whatever process: asked for by a file.

So one cluster serves several tests: its processes have the functions replaced from the start, and nothing happens until it is asked for.
"""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grun.writing import telling
from tests.faults.injection import Injection
from tests.faults.small_disk import fill

__all__ = ["VARIABLE", "Moments", "at", "watched"]

VARIABLE = "FAULT_TEST_MOMENTS"


def watched(where: str) -> Injection:
    """A function at whose calls something can be asked to happen."""
    return Injection(where, "replace", always=True, by="tests.faults.moments:at")


def at(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do what is asked for, if it is this call's turn, and then what the function does."""
    plan = Path(os.environ[VARIABLE]) / function.__qualname__
    if plan.is_file():
        asked = json.loads(plan.read_text())
        if asked["nth"] > 1:
            plan.write_text(json.dumps({**asked, "nth": asked["nth"] - 1}))
        else:
            plan.unlink()
            _do(asked)
    return function(*args, **kwargs)


def _do(asked: dict[str, Any]) -> None:
    path = Path(asked["path"])
    match asked["do"]:
        case "fill":
            fill(path)
        case "refuse":
            with telling(path):  # as it comes out of our writers
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "flip":
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        case "cut":
            os.truncate(path, path.stat().st_size // 2)


class Moments:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, function: str, do: str, path: Path, nth: int = 1) -> None:
        """Let something happen before the nth call of a function from now on, given by its qualified name; once."""
        (self.folder / function).write_text(json.dumps({"do": do, "path": str(path), "nth": nth}))

    def has_happened(self, function: str) -> bool:
        """Whether it did."""
        return not (self.folder / function).exists()
