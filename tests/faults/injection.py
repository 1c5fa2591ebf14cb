"""What is to fail in a process of ours, where, and when. Travels in the environment to all processes of a command."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

__all__ = ["CLOCK", "VARIABLE", "Injection", "environment"]

VARIABLE = "FAULT_INJECTIONS"
CLOCK = "FAULT_CLOCK"
"""Variable: seconds by which the wall clock is wrong, in every process of a command; monotonic clocks stay."""

_INJECT = Path(__file__).parent / "inject"
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Injection:
    """One place that fails."""

    where: str
    """`module:function` or `module:Class.method`."""
    do: Literal["kill", "stop", "enospc", "erofs", "skip", "replace"] = "kill"
    """What happens there instead of, or around, the call: the process dies, hangs, gets an error of the disk, goes on without it,
    or calls something else."""
    nth: int = 1
    """At which call in a process, counted from 1; those before it are left alone."""
    always: bool = False
    """At every call from the nth on."""
    after: bool = False
    """Once the call has returned, instead of before it."""
    rank: int | None = None
    """In the worker of this rank alone."""
    once: str | None = None
    """A file that is made when it happens; where it is there already, nothing does. Processes that are started anew then live."""
    armed: str | None = None
    """A file that has to be there, and is taken away when it happens: one cluster serves several tests."""
    by: str | None = None
    """For `replace`: `module:function` that is called with the original function, and the arguments."""

    def in_folder(self, folder: str) -> "Injection":
        """The same, with its file in a folder."""
        return self if self.once is None else replace(self, once=f"{folder}/{self.once}")


def environment(injections: Iterable[Injection], above: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that make a process, and those it starts, fail where the injections say, and where this process does."""
    given = [*json.loads(os.environ.get(VARIABLE, "[]")), *(asdict(injection) for injection in injections)]
    # `sitecustomize` is what the interpreter imports by itself, from wherever it is found first
    return {VARIABLE: json.dumps(given), "PYTHONPATH": f"{_INJECT}:{_ROOT}", **(above or {})}
