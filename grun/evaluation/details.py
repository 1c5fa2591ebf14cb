"""What a report shows beside its metrics and is read off scored rows: histograms of the gates, points of the threshold curve."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grun.evaluation.report import EvalReport
from grun.evaluation.report_parts import NUM_BINS, GateHistogram, ThresholdPoint
from grun.evaluation.summary import ScoredSet

__all__ = ["CURVE_THRESHOLDS", "curve_point", "curve_thresholds", "gate_histograms"]

CURVE_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of the curve, to which the adapter's own is added."""


def curve_thresholds(own: float | None) -> tuple[float, ...]:
    """The thresholds of an adapter's curve, smallest first."""
    return tuple(sorted({*CURVE_THRESHOLDS, *([] if own is None else [own])}))


def gate_histograms(sets: Sequence[ScoredSet], layers: Sequence[int]) -> tuple[GateHistogram, ...]:
    """Count the gate values of unseen forget prompts and of ordinary ones, per layer and for the largest over the layers.

    Returns:
        none where there are no gates; else forget before ordinary, the layers in their order, the largest last.
    """
    found = []
    for side, role in (("forget", "forget_unseen"), ("ordinary", "holdout")):
        rows = [row.gate_values for scored in sets if scored.role == role for row in scored.rows]
        if not (layers and rows):
            continue
        table = np.asarray(rows, dtype=np.float64)  # (prompts, layers)
        columns = [*zip(layers, table.T, strict=True), (None, table.max(axis=1))]
        found += [GateHistogram.model_validate({"side": side, "layer": layer, "counts": _counts(v)}) for layer, v in columns]
    return tuple(found)


def _counts(values: NDArray[np.float64]) -> tuple[int, ...]:
    counts, _edges = np.histogram(values, bins=NUM_BINS, range=(0, 1))
    return tuple(int(count) for count in counts)


def curve_point(report: EvalReport, threshold: float) -> ThresholdPoint:
    """The point of a report that was scored at a threshold."""

    def known(name: str) -> float | None:
        return report[name].value if name in report else None

    return ThresholdPoint(
        threshold=threshold,
        forget_open_rate=known("gate/forget_open_rate"),
        false_open_rate=known("gate/false_open_rate"),
        forget_rouge_l_recall=known("forget_unseen/rouge_l_recall"),
        utility_ratio=known("model_utility_ratio"),
    )
