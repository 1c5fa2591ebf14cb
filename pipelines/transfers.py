"""How far nodes are with what they copy from shared storage: they write it down where the driver sees it, and the driver says so.

<output>/transfers/<node>-<what>-<process>.json    {"node", "what", "done", "total"} in bytes, while it lasts
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grun.config import Recipe
from pipelines.console import note
from pipelines.polling import polling

__all__ = ["Teller", "reporting", "telling_of_transfers"]

_POLL_SECONDS = 2.0


def _root(recipe: Recipe) -> Path:
    return recipe.output.absolute() / "transfers"


@contextmanager
def reporting(recipe: Recipe, what: str) -> Iterator[Callable[[int, int], None]]:
    """Write down how far a copy is, at every per cent of it.

    Yields:
        a function that takes the bytes that are done, and all of them.
    """
    node = os.uname().nodename
    path = _root(recipe) / f"{node}-{what}-{os.getpid()}.json"
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        reached = 100 * done // max(1, total)
        if reached > last:
            last = reached
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"node": node, "what": what, "done": done, "total": total}), encoding="utf-8")

    try:
        yield report
    finally:
        path.unlink(missing_ok=True)


class Teller:
    """Says how far copies are, each at every tenth; what is done before anybody has looked is passed over."""

    def __init__(self, recipe: Recipe) -> None:
        self.root = _root(recipe)
        self.seen: dict[str, tuple[int, float]] = {}
        """Of each copy, the tenth that was told last, and when it was seen first."""

    def __call__(self) -> None:
        """Look once."""
        for path in sorted(self.root.glob("*.json")):
            with suppress(OSError, ValueError, LookupError):  # being written, or just gone
                self._tell(path.name, json.loads(path.read_text(encoding="utf-8")))

    def _tell(self, key: str, found: dict[str, int]) -> None:
        done, total = found["done"], max(1, found["total"])
        tenth = 10 * done // total
        told, since = self.seen.get(key, (-1, time.monotonic()))
        if tenth > told:
            note(
                f"{found['node']} fetches {found['what']}: {10 * tenth} % of {total / 1e6:.0f} MB after {time.monotonic() - since:.0f} s"
            )
        self.seen[key] = (max(tenth, told), since)


@contextmanager
def telling_of_transfers(recipe: Recipe) -> Iterator[None]:
    """Say during the context how far nodes are with their copies of what is at `cache.uri`."""
    if recipe.cache.uri is None:
        yield
        return
    with polling(Teller(recipe), seconds=_POLL_SECONDS, name="transfers"):
        yield
