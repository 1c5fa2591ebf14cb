"""The harness: repeats that take turns, and the rows that they become.

A ratio is only worth something if both sides saw the same machine. So the ways to be compared take turns within every
repeat, each repeat starts with another of them, and a ratio is the median over repeats of what the two took in the
same repeat. CPU time of the process is what is compared, as a shared machine bends wall time; wall time stands beside it.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from matplotlib.figure import Figure

from pipelines.benchmarks.plan_options import PlanOptions
from pipelines.console import progress

__all__ = ["Options", "Report", "Row", "Seconds", "compare", "cost", "interleave", "plain", "timed"]

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What is the same for every benchmark."""

    data: Path
    """Folder of the TOFU files."""
    output: Path
    """Folder of the results; models and caches go to `work` below it."""
    repeats: int
    """How often each way is timed."""
    tiny: bool = False
    """Toy sizes: whether it runs, and not what it costs."""
    data_kind: Literal["testbed", "tofu"] = "testbed"
    """Which data `quality` and `sequence` are measured on; the others say for themselves."""
    plan: PlanOptions = field(default_factory=PlanOptions)
    """What `plan` calculates."""
    minutes: float = 120.0
    """How long `soak` goes on; the round that is under way is finished."""
    seed: int = 0
    """What `soak` draws its kills with."""

    @property
    def work(self) -> Path:
        """Folder of models and caches."""
        return self.output.absolute() / "work"


@dataclass(frozen=True)
class Seconds:
    """What one run took."""

    cpu: float
    """CPU seconds of this process, over all its threads."""
    wall: float
    """Seconds on the clock."""

    def __truediv__(self, units: float) -> "Seconds":
        return Seconds(self.cpu / units, self.wall / units)


@dataclass(frozen=True)
class Row:
    """A line of a table of results."""

    name: str
    """`benchmark.what`; where two are compared, `..._over_...`."""
    value: float
    """What was measured, a median."""
    unit: str
    """Unit of value and baseline."""
    baseline: float | None = None
    """The same of what it is compared with."""
    ratio: float | None = None
    """Value over baseline: the median of the ratios in each repeat, where there are repeats."""
    low: float | None = None
    """Least of the ratio over the repeats; of the value, where there is no ratio."""
    high: float | None = None
    """Greatest, likewise."""
    wall_ratio: float | None = None
    """The ratio of wall times, where the ratio is of CPU times."""


@dataclass(frozen=True)
class Report:
    """What a benchmark found."""

    rows: Sequence[Row]
    figure: Figure
    workload: Mapping[str, Any] = field(default_factory=dict)
    """The sizes that it was measured at."""
    name: str = ""
    """Name of its files, where it is not that of the benchmark."""
    records: Sequence[Mapping[str, Any]] = ()
    """Rows of a table of its own; `rows` then compare them."""
    table: str = ""
    """That table as text, printed in the place of `rows`."""


def timed(action: Callable[[int], object], *, sync: Callable[[], None] = lambda: None) -> Callable[[int], Seconds]:
    """Turn an action into one that returns what it took.

    Args:
        sync: waits until a device has done what it was given.
    """

    def run(index: int) -> Seconds:
        gc.collect()  # or one way pays for what another left behind
        sync()
        cpu, wall = time.process_time(), time.perf_counter()
        action(index)
        sync()
        return Seconds(time.process_time() - cpu, time.perf_counter() - wall)

    return run


def interleave(ways: Mapping[str, Callable[[int], T]], repeats: int, *, title: str) -> dict[str, list[T]]:
    """Run every way once to warm up, and then `repeats` times in turn.

    Args:
        ways: by name, a function of the number of the repeat.
        title: what the progress line says.

    Returns:
        what each way returned, by name, in the order of the repeats.
    """
    names = list(ways)
    samples: dict[str, list[T]] = {name: [] for name in names}
    with progress(title, len(names) * (repeats + 1)) as advance:
        for name in names:
            ways[name](0)
            advance(1)
        for repeat in range(repeats):
            first = repeat % len(names)
            for name in [*names[first:], *names[:first]]:
                samples[name].append(ways[name](repeat))
                advance(1)
    return samples


def compare(name: str, samples: Sequence[Seconds], baseline: Sequence[Seconds], *, wall_only: bool = False) -> Row:
    """Compare two ways, repeat by repeat.

    Args:
        wall_only: the work was not done by this process's CPU, so that its time says nothing.
    """
    wall = [sample.wall / other.wall for sample, other in zip(samples, baseline, strict=True)]
    ratios = wall if wall_only else [sample.cpu / other.cpu for sample, other in zip(samples, baseline, strict=True)]
    return Row(
        name,
        statistics.median(sample.wall if wall_only else sample.cpu for sample in samples),
        "s" if wall_only else "s CPU",
        baseline=statistics.median(other.wall if wall_only else other.cpu for other in baseline),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        wall_ratio=statistics.median(wall),
    )


def cost(name: str, samples: Sequence[Seconds]) -> list[Row]:
    """What one way takes: a row of CPU time and one of wall time."""
    columns = {"cpu": ("s CPU", [sample.cpu for sample in samples]), "wall": ("s", [sample.wall for sample in samples])}
    return [
        Row(f"{name}.{kind}", statistics.median(values), unit, low=min(values), high=max(values))
        for kind, (unit, values) in columns.items()
    ]


def plain(name: str, value: float, unit: str, baseline: float | None = None) -> Row:
    """A number that was measured once."""
    return Row(name, value, unit, baseline=baseline, ratio=None if baseline is None else value / baseline)
