"""What people see: progress on stderr, results on stdout, nothing that a pipe could not take."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from grun.errors import ConfigError

__all__ = ["check_writable", "error", "note", "progress", "summary"]

_stderr = Console(stderr=True, highlight=False)
_stdout = Console(highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Say something in passing."""
    _stderr.print(f"[dim]·[/dim] {escape(text)}", soft_wrap=True)


def error(text: str) -> None:
    """Say what is wrong."""
    _stderr.print(f"[bold red]error:[/bold red] {escape(text)}", soft_wrap=True)


def summary(title: str, rows: Mapping[str, str], next_steps: Sequence[str] = ()) -> None:
    """Print a result: a title, lines of name and value, and where to go next."""
    table = Table(
        title=escape(title), title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    _stdout.print()
    _stdout.print(table)
    for step in next_steps:
        _stdout.print(f"  next: {escape(step)}")


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far some work is; yields a function that takes the number of further units done.

    On a terminal a bar; elsewhere a line for every tenth.
    """
    if not _stderr.is_terminal:
        yield _plain(description, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_stderr) as bar:
        task = bar.add_task(escape(description), total=total)

        def advance(amount: int) -> None:
            bar.advance(task, amount)

        yield advance


def _plain(description: str, total: int) -> Callable[[int], None]:
    done, shown = 0, 0

    def advance(amount: int) -> None:
        nonlocal done, shown
        done = min(total, done + amount)
        tenth = 10 * done // max(1, total)
        if tenth > shown:
            shown = tenth
            print(f"{description}: {done}/{total}", file=sys.stderr, flush=True)

    return advance


def check_writable(folder: Path) -> None:
    """Refuse an output folder that cannot be written, without leaving anything behind.

    Raises:
        ConfigError: with the folder and the system's reason.
    """
    existing = folder.absolute()
    missing: list[Path] = []
    while not existing.exists():
        missing.append(existing)
        existing = existing.parent
    try:
        for parent in reversed(missing):
            parent.mkdir()
        probe = folder / ".write-probe"
        probe.touch()
        probe.unlink()
    except OSError as reason:
        raise ConfigError(
            f"`output` must be a folder that can be written, got {str(folder)!r} ({reason.strerror}); choose another"
        ) from None
    finally:
        for parent in missing:
            if parent.is_dir():
                parent.rmdir()
