"""Figures hold the series they are given, name their axes and say which way is better."""

import io
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from grun.evaluation.figures import gate_histogram, pareto_figure, threshold_figure, training_curves

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
