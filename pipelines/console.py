"""What people see: notes and progress on stderr, results on stdout; on a terminal with colour and bars, in a log as plain lines.

Text is always literal: no markup, no emoji codes, no control characters, so that data can never change how a line looks, nor
what a terminal does.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from grun.errors import ConfigError
from grun.reading import visible

__all__ = ["check_writable", "defect", "error", "note", "progress", "result", "summary"]

_LITTLE = 2**16
"""Bytes that there has to be room for before anything is begun."""

PIPE_CLOSED = 141
"""Exit status of a process that SIGPIPE ended: what the shell reports when a reader goes away."""


class _Console(Console):
    """Rich's console, with text taken literally and a closed pipe reported in the exit status."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """End without a word: there is nobody left to read one."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # or the interpreter complains when it flushes at exit
        raise SystemExit(PIPE_CLOSED)


_stderr = _Console(stderr=True)
_stdout = _Console()

# `soft_wrap` below leaves long lines to the terminal: a path that is broken in two can be neither copied nor searched


def note(text: str) -> None:
    """Say something in passing."""
    _stderr.print(visible(text), soft_wrap=True)


def error(text: str) -> None:
    """Say what is wrong."""
    _stderr.print(Text.assemble(("error:", "bold red"), " ", visible(text)), soft_wrap=True)


def defect(trace: str) -> None:
    """Show in full what failed, for a report to whoever maintains this program."""
    _stderr.print(visible(trace), soft_wrap=True, end="")


def result(text: str) -> None:
    """Print a text that was asked for, as it is."""
    _stdout.print(visible(text), soft_wrap=True, end="")


def summary(title: str, rows: Mapping[str, str], next_steps: Sequence[str] = ()) -> None:
    """Print a result: a title, a name and a value on each line, and commands to go on with."""
    title, next_steps = visible(title), [visible(step) for step in next_steps]
    rows = {visible(name): visible(value) for name, value in rows.items()}
    if not _stdout.is_terminal:
        width = max(map(len, rows), default=0)
        below = "\n" + " " * (width + 4)  # a value of several lines must not look like a line of ours
        lines = [f"  {name:<{width}}  {value.replace(chr(10), below)}" for name, value in rows.items()]
        _stdout.print("\n".join([title, *lines, *(f"next: {step}" for step in next_steps)]), soft_wrap=True)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    steps = [Text(f"next: {step}", style="dim") for step in next_steps]
    _stdout.print(Panel(Group(table, *steps), title=Text(title, style="bold"), title_align="left", expand=False))


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far some work is: a bar on a terminal, elsewhere a line for every tenth.

    Yields:
        a function that takes the number of units done since the last call.
    """
    description = visible(description)
    if not _stderr.is_terminal:
        yield _plain_progress(description, total)
        return
    shown = TextColumn("{task.description}", markup=False)
    with Progress(shown, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=_stderr) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


def _plain_progress(description: str, total: int) -> Callable[[int], None]:
    start, done, tenths = time.monotonic(), 0, 0

    def advance(amount: int) -> None:
        nonlocal done, tenths
        done = min(total, done + amount)
        reached = 10 * done // total if total else 0
        if reached > tenths:
            tenths = reached
            _stderr.print(
                f"{description}: {10 * tenths} % ({done}/{total}) after {time.monotonic() - start:.0f} s", soft_wrap=True
            )

    return advance


def check_writable(folder: Path) -> None:
    """Check that an output folder exists or can be made, and can be written to, as can what it holds; leaves nothing behind.

    Raises:
        ConfigError: with the folder and the system's reason, be it that its disk is full.
    """
    try:
        existing = _nearest_existing(folder.absolute())
        below = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []  # may be other disks
        # a real file rather than the permission bits, which mean nothing to root, on read-only mounts and in /proc
        for place in (existing, *below):
            folder = place if place in below else folder
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"\0" * _LITTLE)
    except (OSError, ValueError) as reason:
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        raise ConfigError(
            f"`output` must be a folder that can be written to, got {str(folder)!r} ({why}); choose another with `--output`"
        ) from None


def _nearest_existing(path: Path) -> Path:
    """The path itself, or the closest of its parents that is there, be it a folder or not."""
    for candidate in (path, *path.parents):
        try:
            candidate.lstat()
        except FileNotFoundError:
            continue
        return candidate
    raise FileNotFoundError(path)
