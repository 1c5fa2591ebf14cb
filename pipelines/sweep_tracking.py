"""The driver's side of a sweep in MLflow: a child run per trial, fed from the files that trials leave in their folders.

It reads the sweep's folder and nothing of Tune's, so that a continued sweep is followed like a new one: a trial's run
is found again by its key, and what was shipped before is shipped again to no effect.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grun.errors import OutageError, TrackingError
from pipelines.following import Spool, shipping
from pipelines.sweep_record import TrialRecord, read_trials
from pipelines.sweep_trial import TrialContext
from pipelines.tracking import Tracker

__all__ = ["following_trials"]

_POLL_SECONDS = 1.0


@dataclass
class _Followed:
    """What is known to MLflow of a trial."""

    run_id: str
    spool: Spool
    is_closed: bool = False


class _Follower:
    def __init__(self, tracker: Tracker, parent: str, context: TrialContext, on_done: Callable[[TrialRecord], None]) -> None:
        self.tracker = tracker
        self.parent = parent
        self.context = context
        self.on_done = on_done
        self.known: dict[str, _Followed] = {}
        self.ended: set[str] = set()

    def look(self) -> None:
        """Say which trials have ended, and record what is new of all of them.

        Raises:
            TrackingError: MLflow is away, or refuses; a later look makes up for it.
        """
        trials = read_trials(self.context.folder)
        for trial in trials:
            if trial.done and trial.trial_id not in self.ended:
                self.ended.add(trial.trial_id)
                self.on_done(trial)
        refused: list[TrackingError] = []
        for trial in trials:
            try:
                self._record(trial)
            except OutageError:
                raise
            except TrackingError as error:  # which says nothing about the others
                refused.append(error)
        if refused:
            raise refused[0]

    def _record(self, trial: TrialRecord) -> None:
        followed = self.known.get(trial.trial_id) or self._open(trial)
        if followed.is_closed:
            return
        followed.spool.ship(followed.run_id)
        if not trial.done:
            return
        if trial.failure is not None:
            self.tracker.log_text(followed.run_id, trial.failure, "failure.txt")
        self.tracker.log_metrics(followed.run_id, dict(trial.result), step=trial.steps)
        self.tracker.tag(followed.run_id, {f"flag.{name}": reason for name, reason in trial.flags.items()})
        self._log_reports(followed.run_id, self.context.trial_folder(trial.trial_id) / "evaluation")
        self.tracker.end_run(followed.run_id, "FINISHED" if trial.failure is None else "FAILED")
        followed.is_closed = True

    def _open(self, trial: TrialRecord) -> _Followed:
        run_id = self.tracker.start_run(
            trial.trial_id, parent=self.parent, key=f"{self.parent}/{trial.trial_id}", tags={"kind": "trial"}
        )
        self.tracker.log_params(run_id, trial.point)
        spool = Spool(self.tracker, self.context.trial_folder(trial.trial_id) / "metrics.jsonl")
        return self.known.setdefault(trial.trial_id, _Followed(run_id, spool))

    def _log_reports(self, run_id: str, folder: Path) -> None:
        for report in sorted(folder.glob("*/report.json")):
            self.tracker.log_text(run_id, report.read_text(encoding="utf-8"), f"reports/{report.parent.name}.json")


@contextmanager
def following_trials(
    tracker: Tracker, parent: str, context: TrialContext, on_done: Callable[[TrialRecord], None]
) -> Iterator[None]:
    """Follow the trials of a sweep while the context runs, and to the last line at its end (:func:`pipelines.following.shipping`).

    Args:
        on_done: called once for each trial that is done, whether or not MLflow knows it yet.

    Raises:
        TrackingError: at the end MLflow was still away, or refused.
    """
    follower = _Follower(tracker, parent, context, on_done)
    with shipping(follower.look, tracker.patience, seconds=_POLL_SECONDS, name="trials", kept_in=context.folder):
        yield
