"""Calibration beside scoring: gates of held-out ordinary records, and the gate thresholds that they allow."""

from collections.abc import Sequence
from dataclasses import replace

from grun.config import CalibrationConfig
from grun.data.splits import Splits
from grun.evaluation.calibration import OrdinaryGates, holdout_halves
from grun.evaluation.evaluate import AdapterScorer, Scorer
from grun.evaluation.report import EvalReport, Metric
from grun.evaluation.sets import EvalSet
from grun.interventions import Edits

__all__ = ["bound_metric", "keeps_promise", "ordinary_of", "raised", "read_ordinary"]

_RECORD_OPEN_UPPER = "gate/record_open_upper"
"""Upper bound, at confidence 1 - `calibration.delta`, of the share of ordinary records any wording of which opens a gate."""


def read_ordinary(scorer: Scorer, adapter: Edits, evaluated: EvalSet) -> OrdinaryGates:
    """Read the gates of held-out records with every edit held back: off the prefix cache where it has all of them, else in full."""
    cache = scorer.cache
    if cache is not None:
        examples = [prompt.encode(scorer.encoder) for prompt in evaluated.prompts]
        short = [example.shortened() for example in examples]
        if not all(example in cache for example in short):
            scorer = replace(scorer, cache=None)
    return OrdinaryGates.of(evaluated, scorer.closed_gate_values(evaluated.prompts, adapter))


def ordinary_of(scored: AdapterScorer, splits: Splits) -> OrdinaryGates | None:
    """The gates of the calibration records, as they were read for scoring where those are the same rows; None where there are none."""
    calibration, _check = holdout_halves(splits)
    if not calibration.prompts:
        return None
    known = next((s for s in scored.sets if s.role == "holdout" and s.prompts == calibration.prompts), None)
    if known is not None:
        return OrdinaryGates.of(calibration, scored.closed[known.name])
    return read_ordinary(scored.scorer, scored.adapter, calibration)


def raised(config: CalibrationConfig, ordinary: OrdinaryGates, thresholds: Sequence[float | None]) -> list[float | None]:
    """Thresholds as they may be served, each once."""
    served = [t if t is None else ordinary.raised(t, alpha=config.alpha, delta=config.delta) for t in thresholds]
    return list(dict.fromkeys(served))


def bound_metric(config: CalibrationConfig, ordinary: OrdinaryGates, threshold: float) -> Metric:
    """The bound on the calibration records at a threshold, as a metric."""
    count = ordinary.count(threshold, delta=config.delta)
    return Metric(
        name=_RECORD_OPEN_UPPER,
        value=count.upper_bound,
        direction="lower",
        num_samples=count.num_records,
        digest=count.digest,
    )


def keeps_promise(config: CalibrationConfig, report: EvalReport) -> bool:
    """Whether a report's threshold is enough on the calibration records; not where that was not looked at."""
    return _RECORD_OPEN_UPPER in report and report.value(_RECORD_OPEN_UPPER) <= config.alpha
