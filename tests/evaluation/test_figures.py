"""Figures hold the series they are given, name their axes and say which way is better."""

import io
import math
import re

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from grun.evaluation.figures import gate_histogram, pareto_figure, threshold_figure, training_curves
from grun.evaluation.report_figures import PAINT, Bars, before_after_figure, curve_figure, gates_figure, to_svg
from grun.evaluation.report_parts import NUM_BINS, GateHistogram, ThresholdPoint
from grun.evaluation.sequence_figure import SequenceStep, sequence_figure

# matplotlib's font parser uses names that its own dependency pyparsing has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.* deprecated - use:DeprecationWarning")

POINTS = [(0.3, 0.97), (0.1, 0.99), (0.05, 0.95), (0.2, 1.0)]


def line(axes: Axes, label: str) -> list[tuple[float, float]]:
    [found] = [item for item in axes.get_lines() if str(item.get_label()).startswith(label)]
    return [(float(x), float(y)) for x, y in np.asarray(found.get_xydata())]


def rendered(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def test_pareto_figure() -> None:
    figure = pareto_figure(POINTS, front=[POINTS[3], POINTS[1]], chosen=POINTS[1], max_forget=0.15, min_utility=0.98)
    [axes] = figure.axes
    assert np.asarray(axes.collections[0].get_offsets()).tolist() == [list(point) for point in POINTS]
    assert line(axes, "Pareto front (2)") == [POINTS[1], POINTS[3]]
    assert line(axes, "chosen (0.100, 0.990)") == [POINTS[1]]
    assert {x for x, _ in line(axes, "forget at most 0.15")} == {0.15}
    assert {y for _, y in line(axes, "utility at least 0.98")} == {0.98}
    assert "lower is better" in axes.get_xlabel()
    assert "higher is better" in axes.get_ylabel()
    assert rendered(figure).startswith(b"\x89PNG")


def test_pareto_figure_without_targets() -> None:
    figure = pareto_figure(POINTS[:1], front=POINTS[:1], chosen=POINTS[0])
    assert len(figure.axes[0].get_lines()) == 2


def test_gate_histogram_shows_per_cent_of_each_kind() -> None:
    figure = gate_histogram([1.0, 0.99, 0.51], [0.0] * 7 + [0.6], 0.5)
    [axes] = figure.axes
    heights = {}
    for patch in axes.patches:
        assert isinstance(patch, Polygon)
        if patch.get_label() and not str(patch.get_label()).startswith("_"):
            heights[str(patch.get_label())] = max(np.asarray(patch.get_xy())[:, 1])
    assert heights == {"forget prompts (3)": pytest.approx(200 / 3), "ordinary prompts (8)": pytest.approx(87.5)}
    assert {x for x, _ in line(axes, "gate threshold 0.5")} == {0.5}
    assert axes.get_ylabel() == "prompts (%)"
    rendered(figure)


def test_soft_gates_have_no_threshold_line() -> None:
    assert gate_histogram([1.0], [0.0], None).axes[0].get_lines() == []


def test_threshold_figure_sorts_by_threshold() -> None:
    figure = threshold_figure([0.9, 0.1], [0.3, 0.1], [1.0, 0.9], [0.0, 0.2])
    [axes] = figure.axes
    assert line(axes, "forget ROUGE-L recall") == [(0.1, 0.1), (0.9, 0.3)]
    assert line(axes, "utility ratio") == [(0.1, 0.9), (0.9, 1.0)]
    assert line(axes, "false-open rate") == [(0.1, 0.2), (0.9, 0.0)]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert all("is better" in label for label in labels)
    rendered(figure)


def test_training_curves_give_each_metric_its_panel_and_skip_steps_without_a_value() -> None:
    names = ["train/loss", "forget/npo", "retain/ce", "probe/score"]
    metrics = {name: [1.0, math.nan, float(index)] for index, name in enumerate(names)}
    figure = training_curves([1, 2, 3], metrics)
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in visible] == names
    assert np.asarray(visible[3].get_lines()[0].get_xydata()).tolist() == [[1.0, 1.0], [3.0, 3.0]]
    rendered(figure)


def test_training_curves_of_a_run_without_reports() -> None:
    figure = training_curves([], {})
    rendered(figure)
    assert not any(axes.get_lines() for axes in figure.axes)


def test_bars_of_nearly_all_prompts_stand_clear_of_the_axes() -> None:
    [axes] = gate_histogram([1.0], [0.0], 0.5).axes
    assert axes.get_xlim()[0] < 0 < 1 < axes.get_xlim()[1]
    assert axes.get_ylim()[1] > 100
    assert axes.get_yticks().tolist() == [0, 25, 50, 75, 100]


def test_before_and_after_are_drawn_where_they_are_known() -> None:
    bars = [Bars("said", 0.9, 0.1, True), Bars("kept", None, 1.2, False)]
    [axes] = before_after_figure(bars, wide=False).axes
    # what is more than all ends at 100 and keeps its number
    assert sorted(patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)) == pytest.approx([10, 90, 100])
    assert [text.get_text() for text in axes.texts] == ["90", "10", "120"]


def test_gates_are_drawn_as_per_cent_of_each_side() -> None:
    counts = (3, *[0] * (NUM_BINS - 2), 1)
    gates = [GateHistogram(side="forget", layer=k, counts=counts) for k in (2, None)]
    figure = gates_figure(gates, 0.5, wide=True)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["block 2", "largest over the blocks"]
    heights = [patch.get_height() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert (heights[0], heights[-1], sum(heights)) == (75, 25, 100)


def test_the_curve_skips_what_is_not_known() -> None:
    points = [ThresholdPoint(threshold=0.2, false_open_rate=0.5), ThresholdPoint(threshold=0.4, utility_ratio=1.1)]
    [axes] = curve_figure(points, 0.4, wide=False).axes
    assert line(axes, "ordinary prompts that open") == [(0.2, 50.0)]
    [(threshold, kept)] = line(axes, "usefulness kept")
    assert threshold == 0.4
    assert kept == pytest.approx(110)
    assert line(axes, "forget prompts that open") == []
    assert axes.get_ylim()[1] > 110


def test_an_svg_is_the_same_each_time_and_brings_nothing_along() -> None:
    def drawn(name: str) -> str:
        return to_svg(before_after_figure([Bars("a & b", 0.5, 0.5, True)], wide=False), name, 'said "<b>"')

    svg = drawn("one")
    assert svg == drawn("one")
    assert svg.startswith("<svg ")
    assert 'aria-label="said &quot;&lt;b&gt;&quot;"' in svg
    assert "<style" not in svg
    assert "http" not in svg
    assert "<metadata" not in svg
    # no width or height of its own, and no paint that the page does not choose
    assert " width=" not in svg.split(">", 1)[0]
    assert not set(PAINT.values()) & set(re.findall("#[0-9a-f]{6}", svg))
    assert "a &amp; b" in svg
    ids, others = (set(re.findall(r'\bid="([^"]+)"', drawn(name))) for name in ("one", "two"))
    assert not ids & others


def test_sequence_figure_shows_every_request_the_worst_and_the_bounds() -> None:
    steps = [
        SequenceStep("+r1", {"r1": 0.1}, 1.0, 0.0, 0.01),
        SequenceStep("+r2", {"r1": 0.05, "r2": 0.2}, 0.99, 0.02, 0.04),
        SequenceStep("\u2212r1", {"r2": 0.2}, None, 0.01, 0.03),
    ]
    figure = sequence_figure(steps, max_forget=0.15, min_utility=0.98, max_false_open=0.05)
    forgetting, utility, false_open = figure.axes
    assert line(forgetting, "the least forgotten") == [(0, 0.1), (1, 0.2), (2, 0.2)]
    assert line(utility, "model utility") == [(0, 1.0), (1, 0.99)]
    assert line(false_open, "any gate opens") == [(0, 0.0), (1, 0.02), (2, 0.01)]
    assert line(false_open, "bound at 95 %") == [(0, 0.01), (1, 0.04), (2, 0.03)]
    assert {y for _, y in line(forgetting, "bound 0.15")} == {0.15}
    assert [label.get_text() for label in false_open.get_xticklabels()] == ["+r1", "+r2", "\u2212r1"]
    assert rendered(figure).startswith(b"\x89PNG")


def test_sequence_figure_without_a_step_is_empty() -> None:
    assert rendered(sequence_figure([], max_forget=0.15, min_utility=0.98, max_false_open=0.05)).startswith(b"\x89PNG")
