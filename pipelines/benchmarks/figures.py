"""Figures of benchmarks: ratios as bars, costs as curves on logarithmic axes."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from pipelines.benchmarks.harness import Row

__all__ = ["Curve", "cost_figure", "ratio_figure", "speedup_figure"]

# Okabe and Ito's colours, which colour-blind readers tell apart; curves differ in marker as well
_BLUE, _VERMILLION = "#0072B2", "#D55E00"
_STYLES = ((_VERMILLION, "o"), (_BLUE, "s"))

Curve = tuple[Sequence[float], Sequence[float], str]
"""Sizes, costs, label."""


def ratio_figure(title: str, rows: Sequence[Row]) -> Figure:
    """Draw every ratio as a bar with its range over the repeats, and a line at 1."""
    shown = [row for row in rows if row.ratio is not None]
    figure = Figure(figsize=(7.0, 1.3 + 0.36 * len(shown)), layout="constrained")
    axes = figure.subplots()
    _quiet(axes)
    for place, row in enumerate(reversed(shown)):
        assert row.ratio is not None
        axes.barh(place, row.ratio, height=0.6, color=_BLUE, alpha=0.75)
        high = row.ratio
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color="black", linewidth=1.2)
            high = row.high
        axes.annotate(f"{row.ratio:.3g}", (high, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize="small")
    axes.axvline(1, color="black", linestyle="--", linewidth=1.0)
    axes.set_yticks(range(len(shown)), [row.name for row in reversed(shown)], fontsize="small")
    axes.margins(x=0.12)
    figure.suptitle(title, fontsize="medium")
    axes.set_xlabel("ratio (bar: median; line: least to greatest)")
    return figure


def cost_figure(title: str, panels: Mapping[str, Sequence[Curve]], *, ylabel: str) -> Figure:
    """Draw curves over sizes, a panel for each kind of size."""
    figure = Figure(figsize=(3.4 * len(panels) + 0.6, 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, (xlabel, curves) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        _quiet(axes)
        for (sizes, costs, label), (color, marker) in zip(curves, _STYLES, strict=False):
            axes.loglog(sizes, costs, color=color, marker=marker, markersize=5, label=label)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_xticks(curves[0][0], [f"{size:g}" for size in curves[0][0]])
        axes.minorticks_off()
        # plain numbers: powers would be set by a formula parser, which is slow to load and warns
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(frameon=False, fontsize="small")
    return figure


def speedup_figure(title: str, speedups: Mapping[str, Mapping[int, float]], *, xlabel: str) -> Figure:
    """Draw how many times as fast each part is, by how many do it, beside what it would be at best."""
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    _quiet(axes)
    counts = sorted({count for by_count in speedups.values() for count in by_count})
    axes.plot(counts, counts, color="black", linestyle="--", linewidth=1.0, label="at best")
    for (label, by_count), (color, marker) in zip(speedups.items(), _STYLES, strict=False):
        axes.plot(list(by_count), list(by_count.values()), color=color, marker=marker, markersize=5, label=label)
        axes.annotate(
            f"{by_count[counts[-1]]:.2f}", (counts[-1], by_count[counts[-1]]), xytext=(4, -10), textcoords="offset points"
        )
    axes.set(xlabel=xlabel, ylabel="times as fast", xticks=counts)
    axes.margins(x=0.12)
    axes.legend(frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
