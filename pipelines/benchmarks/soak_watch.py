"""What long-lived processes hold, over time: memory, file handles, processes, disk, and rows of MLflow's database."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["MARK", "Sample", "Watch", "is_of", "soak_figure"]

MARK = "SOAK_MARK"
"""Variable in the environment of all processes of a soak: whatever has it when all has ended is an orphan."""

_TABLES = ("runs", "metrics", "params", "tags", "model_versions", "registered_models")

_BLUE, _VERMILLION, _GREEN = "#0072B2", "#D55E00", "#009E73"


@dataclass(frozen=True)
class Sample:
    """What there was at one time."""

    seconds: float
    """Since the soak began."""
    memory_mb: Mapping[str, float]
    """Proportional set size of a long-lived process with all its children, by name."""
    handles: Mapping[str, int]
    """Open files and sockets, likewise."""
    processes: Mapping[str, int]
    """Processes, likewise; `commands` counts those of the commands that come and go."""
    disk_mb: float
    """Of all that the soak writes, without MLflow's own."""
    store_mb: float
    """Of MLflow's database and artifacts."""
    rows: int
    """In MLflow's tables."""

    def as_record(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def is_of(process: psutil.Process, mark: str) -> bool:
    """Whether a process lives and has the mark."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except psutil.Error:
        return False


class Watch:
    """Takes a sample every few seconds, in a thread of its own.

    Args:
        pids: by name, gives the root of each long-lived tree of processes; None while there is none.
        mark: of the commands.
    """

    def __init__(
        self, pids: Mapping[str, Callable[[], int | None]], mark: str, folder: Path, store: Path, *, seconds: float
    ) -> None:
        self.pids = pids
        self.mark = mark
        self.folder = folder
        self.store = store
        self.seconds = seconds
        self.samples: list[Sample] = []
        self._done = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look until the context ends."""
        began = time.monotonic()

        def look() -> None:
            while not self._done.wait(self.seconds):
                self.samples.append(self._look(time.monotonic() - began))

        thread = threading.Thread(target=look, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _look(self, seconds: float) -> Sample:
        trees = {name: _tree(pid()) for name, pid in self.pids.items()}
        commands = sum(is_of(process, self.mark) for process in psutil.process_iter())
        return Sample(
            seconds=round(seconds, 1),
            memory_mb={name: sum(map(_memory, tree)) / 1e6 for name, tree in trees.items()},
            handles={name: sum(map(_handles, tree)) for name, tree in trees.items()},
            processes={**{name: len(tree) for name, tree in trees.items()}, "commands": commands},
            disk_mb=(_size(self.folder) - _size(self.store)) / 1e6,
            store_mb=_size(self.store) / 1e6,
            rows=_rows(self.store / "mlflow.db"),
        )


def _tree(pid: int | None) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid) if pid is not None else None
        return [] if root is None else [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _memory(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except psutil.Error:
        return 0.0


def _handles(process: psutil.Process) -> int:
    try:
        return int(process.num_fds())
    except psutil.Error:
        return 0


def _size(folder: Path) -> int:
    total = 0
    for path, _folders, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:  # it went meanwhile
                continue
    return total


def _rows(database: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
            return sum(int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]) for table in _TABLES)
    except sqlite3.Error:  # it is not there yet
        return 0


def soak_figure(title: str, samples: Sequence[Sample], kills: Mapping[str, Sequence[float]]) -> Figure:
    """Draw what was held over the hours, a panel for each kind, with a tick for every kill."""
    figure = Figure(figsize=(9.0, 9.0), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    hours = [sample.seconds / 3600 for sample in samples]
    panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]] = [
        ("memory (MB)", _by_name(samples, "memory_mb")),
        ("file handles", _by_name(samples, "handles")),
        ("processes", _by_name(samples, "processes")),
        ("disk but MLflow (MB)", {"": [sample.disk_mb for sample in samples]}),
        ("MLflow, 1000 rows", {"": [sample.rows / 1000 for sample in samples]}),
    ]
    grid = figure.subplots(len(panels) + 1, 1, sharex=True, height_ratios=[*(2 for _ in panels), 1])
    for axes, (label, curves) in zip(grid, panels, strict=False):
        _quiet(axes, label)
        for (name, values), color in zip(curves.items(), (_BLUE, _VERMILLION, _GREEN), strict=False):
            axes.plot(hours, values, color=color, linewidth=1.1, label=name or None)
        axes.set_ylim(bottom=0)
        if len(curves) > 1:
            above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.1}  # no curve runs through it
            axes.legend(frameon=False, fontsize="x-small", ncols=len(curves), **above)
    _quiet(grid[-1], "killed")
    for place, times in enumerate(kills.values()):
        grid[-1].plot([second / 3600 for second in times], [place] * len(times), "|", color="black", markersize=7)
    grid[-1].set_yticks(range(len(kills)), list(kills), fontsize="x-small")
    grid[-1].set_xlabel("hours")
    return figure


def _by_name(samples: Sequence[Sample], field: str) -> dict[str, list[float]]:
    names = list(getattr(samples[-1], field)) if samples else []
    return {name: [getattr(sample, field)[name] for sample in samples] for name in names}


def _quiet(axes: Axes, label: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_ylabel(label, fontsize="small")
