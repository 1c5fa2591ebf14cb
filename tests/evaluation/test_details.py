"""Histograms of the gates and points of the curve, by hand."""

from grun.evaluation.details import curve_point, curve_thresholds, gate_histograms
from grun.evaluation.report import EvalReport, Role
from grun.evaluation.report_parts import NUM_BINS
from grun.evaluation.scores import RowScore
from grun.evaluation.summary import ScoredSet
from tests.evaluation.example_report import metric


def scored(name: str, role: Role, *gates: tuple[float, ...]) -> ScoredSet:
    rows = [RowScore(str(i), name, "question", 1, 1.0, gate_values=values) for i, values in enumerate(gates)]
    return ScoredSet(name, role, "d", rows)


def bins(**counts: int) -> tuple[int, ...]:
    return tuple(counts.get(f"b{index}", 0) for index in range(NUM_BINS))


def test_gate_values_are_counted_by_side_and_layer() -> None:
    sets = [
        scored("forget", "forget", (1.0, 1.0)),  # seen in training: not shown
        scored("forget_unseen", "forget_unseen", (1.0, 0.0), (0.96, 0.52)),
        scored("holdout", "holdout", (0.0, 0.051), (0.049, 0.999), (0.0, 0.0)),
    ]
    found = {(h.side, h.layer): h.counts for h in gate_histograms(sets, (3, 7))}
    assert list(found) == [(side, layer) for side in ("forget", "ordinary") for layer in (3, 7, None)]
    # the last bin holds 1 itself
    assert found["forget", 3] == bins(b19=2)
    assert found["forget", 7] == bins(b0=1, b10=1)
    assert found["forget", None] == bins(b19=2)
    assert found["ordinary", 3] == bins(b0=3)
    assert found["ordinary", 7] == bins(b0=1, b1=1, b19=1)
    assert found["ordinary", None] == bins(b0=1, b1=1, b19=1)


def test_a_base_alone_has_no_histograms() -> None:
    assert gate_histograms([scored("holdout", "holdout", ())], ()) == ()


def test_the_curve_holds_the_threshold_in_use() -> None:
    assert curve_thresholds(0.85) == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
    assert curve_thresholds(0.5) == curve_thresholds(None)


def test_a_point_holds_what_its_report_knows() -> None:
    report = EvalReport(base_digest="b", metrics=(metric("gate/false_open_rate", 0.25), metric("model_utility_ratio", None)))
    point = curve_point(report, 0.3)
    assert (point.threshold, point.false_open_rate, point.utility_ratio, point.forget_open_rate) == (0.3, 0.25, None, None)
