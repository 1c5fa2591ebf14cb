"""Request: the ledger of requests to forget, served by a stack of adapters on one base.

python pipelines/request.py SUBCOMMAND [--recipe FILE] [--field value]
python pipelines/request.py add --request.id r1 --request.reason "..." --forget FILE.jsonl
python pipelines/request.py list
"""

import pipelines.first  # noqa: F401 - before what takes seconds to import

# isort: split

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grun.errors import ConfigError, near_miss
from pipelines.cli import parse_command
from pipelines.console import result
from pipelines.running import run_command

__all__ = ["SUBCOMMANDS", "Subcommand", "main"]


@dataclass(frozen=True)
class Subcommand:
    """One thing that can be done with a ledger."""

    module: str
    """Module with its `run(recipe, arguments) -> status`, and `options(parser)` where it has any; loaded when it is asked for."""
    description: str
    """What it does, in a sentence."""
    arguments: str = ""
    """What has to follow it."""

    def load(self, name: str) -> Callable[..., Any] | None:
        """A function of its module."""
        return getattr(importlib.import_module(self.module), name, None)


SUBCOMMANDS: Mapping[str, Subcommand] = {
    "add": Subcommand("pipelines.ledger_verbs.add", "Add a request: check its records, keep them in the vault, write the entry."),
    "list": Subcommand("pipelines.ledger_verbs.overview", "List the requests of a ledger."),
    "train": Subcommand("pipelines.ledger_verbs.train", "Train the adapter of a request.", "[ID]"),
    "next": Subcommand("pipelines.ledger_verbs.next_request", "Bring the next request to a promoted stack."),
    "revoke": Subcommand("pipelines.ledger_verbs.revoke", "Serve a stack without a request.", "ID"),
    "reinstate": Subcommand("pipelines.ledger_verbs.reinstate", "Take a request that was revoked back into the stack.", "ID"),
    "show": Subcommand("pipelines.ledger_verbs.show", "Show a request and everything that was done for it.", "ID"),
    "verify": Subcommand("pipelines.ledger_verbs.verify", "Prove that nothing in a ledger was altered, or say what was."),
    "export": Subcommand("pipelines.ledger_verbs.export", "Write a ledger to one file, to be kept elsewhere."),
    "purge": Subcommand(
        "pipelines.ledger_verbs.purge", "Delete the text of a request wherever it is kept; the proof stays.", "ID"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["list"]
    if name in ("--help", "-h"):
        width = max(map(len, SUBCOMMANDS))
        lines = [f"  {word:<{width}}  {subcommand.description}" for word, subcommand in SUBCOMMANDS.items()]
        usage = "usage: python pipelines/request.py SUBCOMMAND [--recipe FILE] [--field value ...]"
        result("\n".join([usage, "", "subcommands:", *lines, "", "`SUBCOMMAND --help` lists the options of one.", ""]))
        return 0
    if name not in SUBCOMMANDS:
        raise ConfigError(
            f"a subcommand must come first, one of {', '.join(SUBCOMMANDS)}, got {name!r}{near_miss(name, SUBCOMMANDS)}; "
            "`--help` says what they do"
        )
    subcommand = SUBCOMMANDS[name]
    recipe, arguments = parse_command(
        subcommand.description, rest, extra=subcommand.load("options"), subcommand=f"{name} {subcommand.arguments}".strip()
    )
    run = subcommand.load("run")
    assert run is not None
    return int(run(recipe, arguments))


if __name__ == "__main__":
    run_command(main)
