"""What the subcommands print alike."""

import shlex

from pipelines.cli import next_step

__all__ = ["ledger_step"]


def ledger_step(subcommand: str, again: str, purpose: str) -> str:
    """A subcommand to go on with, about the same ledger: the options of one request are left out.

    Args:
        again: the options that this command was given.
    """
    parts = shlex.split(again)
    kept = [
        part
        for name, value in zip(parts[::2], parts[1::2], strict=True)
        if not name.startswith("--request.")
        for part in (name, value)
    ]
    return next_step("request", shlex.join(kept), purpose, subcommand)
