"""How `quality` is shown: the table as text, the figure, and what GRUN's numbers are to the others'."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipelines.benchmarks.harness import Row

__all__ = ["comparisons", "quality_figure", "quality_table"]

Record = Mapping[str, Any]

# Okabe and Ito's colours, which colour-blind readers tell apart
_COLOURS = {"gd": "#0072B2", "npo": "#D55E00", "idk": "#009E73"}
_MARKERS = {"grun": "o", "loreft": "s", "lora": "^", "full": "D", "base": "*", "twin": "X"}

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("system", "title", "s"),
    ("objective", "objective", "s"),
    ("rate", "learning_rate", "g"),
    ("weight", "forget_weight", "g"),
    ("epochs", "epochs", "d"),
    ("threshold", "gate_threshold", "g"),
    ("ROUGE", "forget_rouge", ".3f"),
    ("unseen", "forget_rouge_unseen", ".3f"),
    ("P(forget)", "forget_probability", ".3f"),
    ("quality", "forget_quality", ".2g"),
    ("utility", "utility", ".3f"),
    ("of base", "utility_ratio", ".3f"),
    ("P(retain)", "retain_probability", ".3f"),
    ("false open", "false_open_rate", ".3f"),
    ("trained", "trained_parameters", ",d"),
    ("share", "trained_share", ".2%"),
    ("steps", "steps", "d"),
    ("CPU s", "cpu_seconds", ".1f"),
    ("cache s", "cache_cpu_seconds", ".1f"),
)
"""Heading, key of a record, format."""


def quality_table(records: Sequence[Record]) -> str:
    """The table as aligned text; what a row does not have is left empty."""

    def cells(record: Record) -> list[str]:
        return ["" if record.get(key) is None else format(record[key], how) for _heading, key, how in _COLUMNS]

    lines = [[heading for heading, _key, _format in _COLUMNS], *map(cells, records)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    return "".join(
        "  ".join(
            f"{cell:<{w}}" if n < 2 else f"{cell:>{w}}" for n, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )


def comparisons(name: str, records: Sequence[Record]) -> list[Row]:
    """GRUN against each other system under the same objective: forgetting, utility, and CPU time with the cache's building."""
    by_cell = {(record["system"], record["objective"]): record for record in records if record["objective"] is not None}
    rows = []
    for (system, objective), theirs in by_cell.items():
        if system == "grun":
            continue
        ours = by_cell["grun", objective]
        rows += [
            _against(
                f"{name}.{objective}.forget_rouge_unseen.grun_over_{system}", "", *_both("forget_rouge_unseen", ours, theirs)
            ),
            _against(f"{name}.{objective}.utility_ratio.grun_over_{system}", "", *_both("utility_ratio", ours, theirs)),
            _against(f"{name}.{objective}.trained_parameters.grun_over_{system}", "", *_both("trained_parameters", ours, theirs)),
            _against(f"{name}.{objective}.cpu.grun_over_{system}", "s CPU", _cpu(ours), _cpu(theirs)),
        ]
    return rows


def _both(key: str, ours: Record, theirs: Record) -> tuple[float, float]:
    return float(ours[key] or 0), float(theirs[key] or 0)


def _cpu(record: Record) -> float:
    return float(record["cpu_seconds"]) + float(record["cache_cpu_seconds"])


def _against(name: str, unit: str, value: float, baseline: float) -> Row:
    """A row whose ratio is left out where it would be one to nothing."""
    return Row(name, value, unit, baseline=baseline, ratio=value / baseline if baseline else None)


def quality_figure(title: str, records: Sequence[Record]) -> Figure:
    """Forgetting against utility: a marker for each system, a colour for each objective. The best corner is at the top left."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    for record in records:
        colour = _COLOURS.get(record["objective"], "black")
        place = (record["forget_rouge_unseen"], record["utility_ratio"] or 0)
        axes.plot(*place, _MARKERS[record["system"]], color=colour, markersize=9, alpha=0.85, markeredgecolor="white")
    axes.axhline(1, color="black", linestyle="--", linewidth=0.8)
    axes.set_xlabel("ROUGE-L recall of what is to be forgotten, unseen wording (lower is better)")
    axes.set_ylabel("model utility, share of the base's (higher is better)")
    systems = {record["system"]: record["title"] for record in records}
    shapes = [Line2D([], [], marker=_MARKERS[s], color="dimgray", linestyle="", label=label) for s, label in systems.items()]
    colours = [Line2D([], [], marker="o", color=colour, linestyle="", label=o.upper()) for o, colour in _COLOURS.items()]
    figure.legend(handles=shapes, frameon=False, fontsize="small", loc="outside right upper")
    figure.legend(handles=colours, frameon=False, fontsize="small", loc="outside right lower")
    figure.suptitle(title, fontsize="medium")
    return figure
