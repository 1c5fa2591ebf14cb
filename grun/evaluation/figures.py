"""Figures for people: the Pareto front of a sweep, the gates, the gate threshold, the course of training.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to no window and no global state. Colours are
Okabe and Ito's, which colour-blind readers tell apart; lines also differ in marker or dash. Legends lie outside the axes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from grun.evaluation.report_parts import NUM_BINS

__all__ = ["gate_histogram", "pareto_figure", "threshold_figure", "training_curves"]

_GATE_LIMITS: Mapping[str, object] = {
    # the outermost bars stand clear of the axes, as nearly all prompts are in them
    "xlim": (-0.03, 1.03),
    "xticks": (0, 0.25, 0.5, 0.75, 1),
    "ylim": (0, 105),
    "yticks": (0, 25, 50, 75, 100),
}

Point = tuple[float, float]
"""(forgetting, utility)."""

BLUE, ORANGE, GREEN, VERMILLION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"

FORGETTING_LABEL = "forget ROUGE-L recall, unseen wording (lower is better)"
UTILITY_LABEL = "model utility, share of the base's (higher is better)"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend_below(figure: Figure, *, columns: int) -> None:
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def pareto_figure(
    points: Sequence[Point],
    *,
    front: Sequence[Point],
    chosen: Point,
    max_forget: float | None = None,
    min_utility: float | None = None,
) -> Figure:
    """Draw all points of a sweep as (forgetting, utility), the front as a line, the chosen point as a star.

    Args:
        max_forget: promotion's bound on forgetting, drawn as a line.
        min_utility: promotion's bound on utility, drawn as a line.
    """
    figure = _figure(6.4, 5.0)
    axes = figure.subplots()
    _quiet(axes)
    axes.scatter(*_columns(points), s=24, color=GREY, alpha=0.7, linewidths=0, label=f"all points ({len(points)})", zorder=2)
    axes.plot(*_columns(sorted(front)), color=BLUE, marker="o", markersize=5, label=f"Pareto front ({len(front)})", zorder=3)
    if max_forget is not None:
        axes.axvline(max_forget, color=VERMILLION, linestyle="--", linewidth=1, label=f"forget at most {max_forget:g}")
    if min_utility is not None:
        axes.axhline(min_utility, color=GREEN, linestyle=":", linewidth=1.4, label=f"utility at least {min_utility:g}")
    axes.plot(
        *_columns([chosen]),
        color=ORANGE,
        marker="*",
        markersize=17,
        markeredgecolor="black",
        linestyle="none",
        label=f"chosen ({chosen[0]:.3f}, {chosen[1]:.3f})",
        zorder=4,
    )
    axes.margins(0.06)
    axes.set(title="Forgetting against utility", xlabel=FORGETTING_LABEL, ylabel=UTILITY_LABEL)
    _legend_below(figure, columns=3)
    return figure


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def gate_histogram(forget_values: Sequence[float], ordinary_values: Sequence[float], threshold: float | None) -> Figure:
    """Draw how the gate values of forget and of ordinary prompts are distributed, each as per cent of its prompts."""
    figure = _figure(6.4, 3.8)
    axes = figure.subplots()
    _quiet(axes)
    bins = np.linspace(0, 1, NUM_BINS + 1).tolist()
    for values, name, color, hatch in ((forget_values, "forget", VERMILLION, "///"), (ordinary_values, "ordinary", BLUE, None)):
        weights = np.full(len(values), 100 / max(len(values), 1))
        label = f"{name} prompts ({len(values)})"
        axes.hist(values, bins, weights=weights, histtype="stepfilled", color=color, alpha=0.35, hatch=hatch, label=label)
        axes.hist(values, bins, weights=weights, histtype="step", color=color, linewidth=1.3)
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.2, label=f"gate threshold {threshold:g}")
    axes.set(
        title="Gate values on prompts that training never saw",
        xlabel="largest gate value over the layers (0: closed, 1: open)",
        ylabel="prompts (%)",
        **_GATE_LIMITS,
    )
    _legend_below(figure, columns=3)
    return figure


def threshold_figure(
    thresholds: Sequence[float], forget_rouge: Sequence[float], utility_ratio: Sequence[float], false_open: Sequence[float]
) -> Figure:
    """Draw what the gate threshold of one adapter trades: forgetting, utility ratio and false-open rate, all as shares."""
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    _quiet(axes)
    order = sorted(range(len(thresholds)), key=lambda index: thresholds[index])
    for values, label, color, marker in (
        (utility_ratio, "utility ratio (higher is better)", GREEN, "s"),
        (forget_rouge, "forget ROUGE-L recall (lower is better)", VERMILLION, "o"),
        (false_open, "false-open rate (lower is better)", BLUE, "^"),
    ):
        axes.plot(
            [thresholds[index] for index in order],
            [values[index] for index in order],
            color=color,
            marker=marker,
            markersize=5,
            label=label,
        )
    axes.margins(y=0.08)
    axes.set(title="What the gate threshold trades", xlabel="gate threshold", ylabel="share")
    _legend_below(figure, columns=2)
    return figure


def training_curves(steps: Sequence[int], metrics: Mapping[str, Sequence[float]]) -> Figure:
    """Draw each metric over the optimizer steps in a panel of its own; steps without a finite value are left out.

    Args:
        metrics: values by name, as many as there are steps.
    """
    columns = min(3, max(1, len(metrics)))
    rows = max(1, math.ceil(len(metrics) / columns))
    figure = _figure(3.2 * columns + 0.8, 2.3 * rows + 0.6)
    figure.suptitle("Training")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    panels = list(grid.flat)
    for axes, (name, values) in zip(panels, metrics.items(), strict=False):
        known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        axes.plot(*_columns(known), color=BLUE, linewidth=1.3, marker="o" if len(known) < 25 else None, markersize=3)
        axes.set_title(name, fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        # shared axes hide their tick labels, also above a panel that stays empty
        axes.tick_params(labelbottom=True)
        _quiet(axes)
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    figure.supxlabel("optimizer step", fontsize="medium")
    return figure
