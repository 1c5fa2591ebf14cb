"""What Ray's own processes have to import of ours, and no more.

A Train run's controller unpickles the worker function and the callbacks; importing torch and transformers for that
would cost every trial some seconds before its workers even start. So this module is light, and loads the rest inside.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback

__all__ = [
    "ERROR_FILE",
    "FORGETTING",
    "OUTCOME_FILE",
    "REPORTS_FILE",
    "STOP_FILE",
    "UTILITY",
    "ReportToTune",
    "run_slot",
    "run_worker",
    "with_objectives",
]

STOP_FILE, OUTCOME_FILE, ERROR_FILE, REPORTS_FILE = "STOP", "outcome.json", "error.json", "reports.jsonl"
"""In a run's folder: asks its workers to finish; how it ended; what was wrong; every report that they have made."""

FORGETTING, UTILITY = "sweep/forgetting", "sweep/utility"
"""The two objectives: what is still leaked (lower is better), what is kept (higher is better)."""


def run_worker(config: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on each worker; see :mod:`pipelines.worker`."""
    from pipelines.run_groups import keep_group
    from pipelines.worker import train_worker

    keep_group(Path(config["storage"]))
    train_worker(config)


def run_slot(config: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on each worker of a warm slot; see :mod:`pipelines.slot_worker`."""
    from pipelines.run_groups import keep_group
    from pipelines.slot_worker import serve

    keep_group(Path(config["storage"]))
    serve(config)


def with_objectives(report: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's report with the probe standing for the two objectives, until the trial is scored."""
    return {**report, FORGETTING: report["probe/forget_leaked"], UTILITY: report["probe/ordinary_kept"]}


class ReportToTune(TuneReportCallback):
    """Forwards a worker's report to Tune."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Runs in the controller."""
        super().after_report(run_context, [with_objectives(metrics[0])], checkpoint)
