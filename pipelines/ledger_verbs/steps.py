"""What the subcommands ask for and print alike."""

import argparse
import shlex

from grun.ledger import LedgerEntry
from pipelines.cli import next_step
from pipelines.console import summary

__all__ = ["ask_for_reason", "ask_for_request", "entry_row", "ledger_step", "tell_repeated"]


def ask_for_request(parser: argparse.ArgumentParser) -> None:
    """Let a request be named."""
    parser.add_argument("id", metavar="ID", help="the request")


def ask_for_reason(parser: argparse.ArgumentParser) -> None:
    """Ask why."""
    parser.add_argument("--reason", metavar="TEXT", required=True, help="why, for the record")


def entry_row(entry: LedgerEntry) -> str:
    """An entry as a summary shows it: which one, by whom and when."""
    return f"{entry.sequence}, by {entry.by} at {entry.at:%Y-%m-%d %H:%M:%S} UTC, digest {entry.digest[:12]}"


def tell_repeated(entry: LedgerEntry, done: str, again: str) -> int:
    """Say that a command has done its work already, as when it was killed just before its end; returns the exit status.

    Args:
        done: what was done, in the past tense.
    """
    summary(
        f"request {entry.request_id} was {done} already",
        {"entry": entry_row(entry)},
        [ledger_step("list", again, "see all requests")],
    )
    return 0


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
