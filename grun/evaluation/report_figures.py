"""The figures of a report on one adapter: before and after, the gates, the threshold curve. As SVG that belongs into a page.

Every figure is drawn twice, narrow for a phone and wide for a desk and for paper. Letters stay letters, so that a page can be
searched and read aloud, and take the page's own font. Ink and series are drawn in colours that stand for a name (:data:`PAINT`),
which the page fills in by its style sheet, light or dark. The same report gives the same bytes.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from grun.evaluation.report_parts import NUM_BINS, GateHistogram, ThresholdPoint

__all__ = ["PAINT", "Bars", "before_after_figure", "curve_figure", "gates_figure", "to_svg"]

PAINT = {"ink": "#010101", "quiet": "#020202", "forget": "#030303", "ordinary": "#040404", "kept": "#050505", "before": "#060606"}
"""Colours that stand for the page's own, by name."""

_NARROW, _WIDE = 3.5, 6.9
"""Inches."""


@dataclass(frozen=True)
class Bars:
    """A share before and after."""

    label: str
    before: float | None
    after: float | None
    lower_is_better: bool


def _figure(height: float, *, wide: bool) -> Figure:
    figure = Figure(figsize=(_WIDE if wide else _NARROW, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _plain(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set(color=PAINT["quiet"], linewidth=0.8)
    axes.tick_params(colors=PAINT["ink"], labelsize=9, color=PAINT["quiet"], width=0.8)
    axes.grid(visible=True, axis=grid, color=PAINT["quiet"], alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.patch.set_alpha(0)


def _text(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=9.5, color=PAINT["ink"], loc="left")
    axes.set_xlabel(x, fontsize=9, color=PAINT["ink"])
    axes.set_ylabel(y, fontsize=9, color=PAINT["ink"])


def _legend(figure: Figure, *, columns: int) -> None:
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=PAINT["ink"])


def before_after_figure(bars: Sequence[Bars], *, wide: bool) -> Figure:
    """Draw each share before and after as two bars, with its number at the end; one that is not known is left out."""
    figure = _figure(0.75 + (0.5 if wide else 0.68) * len(bars), wide=wide)
    axes = figure.subplots()
    _plain(axes, grid="x")
    for offset, name, color in ((-0.19, "before", PAINT["before"]), (0.19, "after", PAINT["kept"])):
        values = [bar.before if name == "before" else bar.after for bar in bars]
        known = [(place + offset, value) for place, value in enumerate(values) if value is not None]
        shares = [100 * min(value, 1) for _, value in known]
        axes.barh([place for place, _ in known], shares, height=0.34, color=color, label=name)
        for place, value in known:
            label = f"{100 * value:.1f}".removesuffix(".0")
            axes.text(100 * min(value, 1) + 1.5, place, label, va="center", fontsize=8.5, color=PAINT["ink"])
    names = [f"{bar.label}\n({'lower' if bar.lower_is_better else 'higher'} is better)" for bar in bars]
    axes.set(xlim=(0, 114), xticks=(0, 25, 50, 75, 100), ylim=(len(bars) - 0.45, -0.55))
    axes.set_yticks(range(len(bars)), names)
    axes.tick_params(axis="y", length=0)
    _text(axes, x="per cent")
    _legend(figure, columns=2)
    return figure


def gates_figure(gates: Sequence[GateHistogram], threshold: float | None, *, wide: bool) -> Figure:
    """Draw how far gates open, a panel a block and one for the largest: each side as per cent of its prompts."""
    layers = list(dict.fromkeys(histogram.layer for histogram in gates))
    columns = min(2, len(layers)) if wide else 1
    rows = -(-len(layers) // columns)
    figure = _figure(0.55 + (1.75 if wide else 1.6) * rows, wide=wide)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, layer in zip(grid.flat, layers, strict=False):
        _gate_panel(axes, [histogram for histogram in gates if histogram.layer == layer], threshold)
        name = "largest over the blocks" if layer is None else f"block {layer}"
        _text(axes, title=name, x="gate value", y="prompts (%)")
    for axes in list(grid.flat)[len(layers) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3 if wide else 2, frameon=False, fontsize=9, labelcolor=PAINT["ink"]
    )
    return figure


def _gate_panel(axes: Axes, gates: Sequence[GateHistogram], threshold: float | None) -> None:
    _plain(axes, grid="y")
    width = 1 / NUM_BINS
    for histogram in gates:
        total, is_forget = sum(histogram.counts), histogram.side == "forget"
        # the two sides stand beside each other in a bin, so that neither hides the other
        places = [(index + (0.5 if is_forget else 0)) * width for index in range(NUM_BINS)]
        axes.bar(
            places,
            [100 * count / max(total, 1) for count in histogram.counts],
            width=width / 2,
            align="edge",
            color=PAINT[histogram.side],
            label=f"{histogram.side} ({total})",
        )
    if threshold is not None:
        axes.axvline(threshold, color=PAINT["ink"], linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    axes.set(xlim=(-0.02, 1.02), xticks=(0, 0.25, 0.5, 0.75, 1), ylim=(0, 105), yticks=(0, 25, 50, 75, 100))
    axes.set_xticklabels(["0", "0.25", "0.5", "0.75", "1"])


def curve_figure(points: Sequence[ThresholdPoint], threshold: float | None, *, wide: bool) -> Figure:
    """Draw what every threshold would give, all as per cent; the adapter's own as a line across."""
    figure = _figure(3.0 if wide else 3.6, wide=wide)
    axes = figure.subplots()
    _plain(axes, grid="y")
    for field, label, color, marker, line in (
        ("utility_ratio", "usefulness kept", "kept", "s", "-"),
        ("forget_open_rate", "forget prompts that open", "forget", "^", ":"),
        ("forget_rouge_l_recall", "forgotten answers still said", "forget", "o", "-"),
        ("false_open_rate", "ordinary prompts that open", "ordinary", "v", "--"),
    ):
        known = [(p.threshold, 100 * getattr(p, field)) for p in points if getattr(p, field) is not None]
        axes.plot(
            [x for x, _ in known],
            [y for _, y in known],
            color=PAINT[color],
            marker=marker,
            markersize=4,
            linewidth=1.3,
            linestyle=line,
            label=label,
        )
    if threshold is not None:
        axes.axvline(threshold, color=PAINT["ink"], linestyle="--", linewidth=1, label=f"threshold in use {threshold:g}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-3, max(105, *axes.get_ylim())))
    _text(axes, x="gate threshold", y="per cent")
    _legend(figure, columns=2 if wide else 1)
    return figure


def to_svg(figure: Figure, name: str, title: str) -> str:
    """Draw a figure as one `<svg>` element for a page.

    Args:
        name: prefix of every id in it, so that figures of one page do not meet. Letters and hyphens.
        title: what is said of it to whoever cannot see it. Plain text, escaped here.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    svg = drawn[drawn.index("<svg") :].strip()
    # what only a file of its own needs; the style would reach beyond the figure
    for needless in (r"<metadata>.*?</metadata>\s*", r"<style[^>]*>.*?</style>\s*", r"<!--.*?-->\s*", r'\sxmlns(:\w+)?="[^"]*"'):
        svg = re.sub(needless, "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"font-family: [^;\"]*; ", "", re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg))
    for paint, color in PAINT.items():
        svg = svg.replace(color, f"var(--{paint})")
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{_attribute(title)}">{rest}'


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
