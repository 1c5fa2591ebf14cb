"""Benchmark: measure what this project claims, and write it down.

    python pipelines/benchmark.py <name> [--repeats N] [--data.kind testbed|tofu] [--data.path FOLDER] [--output FOLDER]

Prints a table, and writes `<output>/<name>.json` and `<output>/<name>.png`. Ratios are taken in one run, between ways
that take turns; see :mod:`pipelines.benchmarks.harness`.
"""

import pipelines.first  # noqa: F401 - before what takes seconds to import

# isort: split

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from grun.errors import ConfigError, near_miss
from pipelines.benchmarks.harness import Options, Report, Row
from pipelines.benchmarks.machine import commit, machine, versions
from pipelines.benchmarks.plan_options import add_plan_options, parse_plan_options
from pipelines.benchmarks.table import BENCHMARKS
from pipelines.cli import Parser
from pipelines.console import check_writable, result, summary
from pipelines.running import run_command

__all__ = ["main", "parse_options", "write_report"]

_COMMAND = "python pipelines/benchmark.py"

_ON_EITHER = ("quality", "sequence")
"""Benchmarks that are measured on the testbed or on TOFU."""


def parse_options(argv: Sequence[str] | None = None) -> tuple[str, Options]:
    """Read the command line; `--help` prints and exits.

    Returns:
        name of the benchmark, and its options.

    Raises:
        ConfigError: no name, one that is not in the table, or an option that is wrong.
    """
    listed = "\n".join(f"  {name:<12}{benchmark.summary}" for name, benchmark in BENCHMARKS.items())
    parser = Parser(
        usage=f"{_COMMAND} NAME [--repeats N] [--data.kind KIND] [--data.path FOLDER] [--output FOLDER]",
        description=f"Measure what this project claims, and write it down.\n\nbenchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which benchmark")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="times that each way is run [default: 5]")
    parser.add_argument(
        "--data.kind",
        dest="data_kind",
        choices=("testbed", "tofu"),
        metavar="KIND",
        help="what `quality` and `sequence`, which run once, are measured on: testbed or tofu [default: testbed]",
    )
    parser.add_argument(
        "--data.path",
        dest="data",
        type=Path,
        default=Path("../shared/data/tofu"),
        metavar="FOLDER",
        help="the folder of the TOFU files [default: ../shared/data/tofu]",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/benchmark"),
        metavar="FOLDER",
        help="where results go; models and caches go to `work` in it [default: results/benchmark]",
    )
    parser.add_argument(
        "--minutes", type=float, default=120.0, metavar="N", help="how long `soak` goes on; at least one round [default: 120]"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="what `soak` draws its kills with [default: 0]")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    add_plan_options(parser)
    values = parser.parse_args(argv)
    if values.name not in BENCHMARKS:
        got = "none" if values.name is None else f"{values.name!r}{near_miss(values.name, BENCHMARKS)}"
        raise ConfigError(f"the name of a benchmark must follow `{_COMMAND}`, got {got}; the benchmarks are:\n{listed}")
    if values.repeats < 1:
        raise ConfigError(f"`--repeats` must be at least 1, got {values.repeats}; leave it out for 5")
    if values.data_kind is not None and values.name not in _ON_EITHER:
        raise ConfigError(
            f"`--data.kind` is an option of {' and '.join(f'`{name}`' for name in _ON_EITHER)}, got it with `{values.name}`; leave it out"
        )
    kind: Literal["testbed", "tofu"] = values.data_kind or "testbed"
    plan = parse_plan_options(vars(values), values.name)
    return values.name, Options(
        values.data, values.output, values.repeats, values.tiny, kind, plan, minutes=values.minutes, seed=values.seed
    )


def write_report(name: str, report: Report, options: Options, command: Sequence[str]) -> tuple[Path, Path]:
    """Write a report as JSON and its figure as PNG; returns both paths."""
    values = {
        "benchmark": name,
        "command": " ".join([_COMMAND, *command]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "repeats": options.repeats,
        "tiny": options.tiny,
        "workload": report.workload,
        "rows": [asdict(row) for row in report.rows],
        **({"records": list(report.records)} if report.records else {}),
    }
    numbers, picture = (options.output / f"{report.name or name}.{suffix}" for suffix in ("json", "png"))
    numbers.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    report.figure.savefig(picture, dpi=130)
    return numbers, picture


def _table(rows: Sequence[Row]) -> str:
    lines = [["row", "value", "unit", "baseline", "ratio", "least", "most", "wall ratio"]]
    for row in rows:
        numbers = (row.baseline, row.ratio, row.low, row.high, row.wall_ratio)
        lines.append([row.name, f"{row.value:.4g}", row.unit, *("" if n is None else f"{n:.4g}" for n in numbers)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = (
        "  ".join(f"{cell:<{w}}" if n in (0, 2) else f"{cell:>{w}}" for n, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
    return "".join(f"{line.rstrip()}\n" for line in aligned)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    name, options = parse_options(argv)
    check_writable(options.output)
    torch.set_num_threads(1)  # CPU time of several threads counts their waiting
    options.work.mkdir(parents=True, exist_ok=True)
    report = BENCHMARKS[name].run(options)
    numbers, picture = write_report(name, report, options, sys.argv[1:] if argv is None else argv)
    result(report.table or _table(report.rows))
    ratios = {row.name: f"{row.ratio:.3g}" for row in report.rows if row.ratio is not None}
    summary(f"benchmark {name}", {**ratios, "numbers": str(numbers), "figure": str(picture)})
    return 0


if __name__ == "__main__":
    run_command(main)
