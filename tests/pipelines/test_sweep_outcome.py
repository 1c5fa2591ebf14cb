"""The outcome of a sweep: the Pareto front, the chosen point and its score; and how ASHA asks a trial to end."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler

from grun.config import Recipe
from grun.errors import TrainingError
from grun.evaluation.report import Direction, EvalReport, Metric
from pipelines.entry import STOP_FILE
from pipelines.scoring import threshold_key
from pipelines.sweep_outcome import SweepPoint, collect, pareto_front
from pipelines.sweep_record import TrialRecord, read_trials
from pipelines.sweep_scheduler import CooperativeASHA
from pipelines.sweep_search import TRIAL_KEY

DIRECTIONS: dict[str, Direction] = {
    "forget_unseen/rouge_l_recall": "lower",
    "model_utility_ratio": "higher",
    "gate/false_open_rate": "lower",
    "gate/auroc": "higher",
}
TRIAL = TrialRecord(trial_id="t", point={})


def make_report(forgetting: float, utility: float, false_open: float = 0.0, auroc: float = 1.0) -> EvalReport:
    values = zip(DIRECTIONS.items(), (forgetting, utility, false_open, auroc), strict=True)
    metrics = tuple(Metric(name=n, value=v, direction=d, num_samples=8, digest="d") for (n, d), v in values)
    return EvalReport(base_digest="b", metrics=metrics)


def make_points(pairs: Sequence[tuple[float, float]]) -> list[SweepPoint]:
    return [SweepPoint(TRIAL, 0.5, make_report(*pair), score=0.0) for pair in pairs]


def front_of(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(point.forgetting, point.utility) for point in pareto_front(make_points(pairs))]


class Sweep:
    """A sweep's folder, as its trials leave it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def add(self, trial_id: str, reports: dict[float, EvalReport], **fields: Any) -> None:
        self.count += 1
        folder = self.folder / "trials" / trial_id
        folder.mkdir(parents=True)
        record = TrialRecord(trial_id=trial_id, number=self.count, point={"adapter.rank": 4}, done=True, steps=20)
        record.model_copy(update=fields).write(folder)
        for threshold, report in reports.items():
            place = folder / "evaluation" / threshold_key(threshold)
            place.mkdir(parents=True)
            report.save(place / "report.json")

    def chosen(self, thresholds: Sequence[float], **sweep: Any) -> tuple[str, float]:
        point = collect(Recipe().replace({"sweep": sweep}), self.folder, thresholds).chosen
        return point.trial.trial_id, point.threshold


@pytest.fixture
def folder(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


class TestParetoFront:
    def test_worked_by_hand(self) -> None:
        # forgetting falls to the left, utility rises: (.3,.9) loses to (.2,.95), (.1,.6) to (.1,.7), (.5,.95) to (.2,.95)
        pairs = [(0.3, 0.9), (0.1, 0.6), (0.2, 0.95), (0.0, 0.4), (0.1, 0.7), (0.9, 1.0), (0.5, 0.95)]
        assert front_of(pairs) == [(0.0, 0.4), (0.1, 0.7), (0.2, 0.95), (0.9, 1.0)]

    def test_a_point_that_is_best_at_both_stands_alone(self) -> None:
        assert front_of([(0.5, 0.9), (0.1, 1.0), (0.1, 0.9), (0.4, 1.0)]) == [(0.1, 1.0)]

    def test_the_first_of_equal_points_stands_for_all(self) -> None:
        points = make_points([(0.2, 0.8), (0.2, 0.8)])
        [kept] = pareto_front(points)
        assert kept is points[0]

    # few values, so that ties in one objective and in both are common
    @given(st.lists(st.tuples(*[st.integers(0, 6).map(lambda n: n / 6)] * 2), min_size=1, max_size=14))
    def test_no_point_dominates_the_front_and_the_front_covers_all(self, pairs: list[tuple[float, float]]) -> None:
        front = front_of(pairs)

        def at_least_as_good(a: tuple[float, float], b: tuple[float, float]) -> bool:
            return a[0] <= b[0] and a[1] >= b[1]

        assert set(front) <= set(pairs)
        assert len(set(front)) == len(front)
        assert not any(at_least_as_good(p, kept) and p != kept for p in pairs for kept in front)
        assert all(any(at_least_as_good(kept, p) for kept in front) for p in pairs)


class TestChoice:
    def test_the_highest_score_over_all_trials_and_thresholds(self, folder: Sweep) -> None:
        folder.add("a", {0.3: make_report(0.3, 1.0), 0.5: make_report(0.1, 0.75)})  # scores 0.7 and 0.65
        folder.add("b", {0.3: make_report(0.25, 0.9), 0.5: make_report(0.05, 0.8)})  # scores 0.65 and 0.75
        outcome = collect(Recipe(), folder.folder, (0.3, 0.5))
        assert (outcome.chosen.trial.trial_id, outcome.chosen.threshold) == ("b", 0.5)
        assert outcome.chosen.score == pytest.approx(0.75)
        assert [point.score for point in outcome.points] == pytest.approx([0.7, 0.65, 0.65, 0.75])
        assert [(p.trial.trial_id, p.threshold) for p in outcome.front] == [("b", 0.5), ("b", 0.3), ("a", 0.3)]

    def test_the_weight_of_utility_decides_which_end_of_the_front(self, folder: Sweep) -> None:
        folder.add("keeps", {0.5: make_report(0.4, 1.0)})
        folder.add("forgets", {0.5: make_report(0.0, 0.7)})
        assert folder.chosen((0.5,)) == ("forgets", 0.5)  # 0.6 against 0.7
        assert folder.chosen((0.5,), utility_weight=2.0) == ("keeps", 0.5)  # 1.6 against 1.4
        assert folder.chosen((0.5,), utility_weight=0.0) == ("forgets", 0.5)

    def test_ties_go_to_the_gate_that_opens_least_for_ordinary_prompts(self, folder: Sweep) -> None:
        folder.add("a", {0.5: make_report(0.1, 0.9, false_open=0.05, auroc=1.0)})
        folder.add("b", {0.5: make_report(0.1, 0.9, false_open=0.01, auroc=0.9)})
        assert folder.chosen((0.5,)) == ("b", 0.5)

    def test_then_to_the_gate_that_tells_prompts_apart_best(self, folder: Sweep) -> None:
        folder.add("a", {0.5: make_report(0.1, 0.9, auroc=0.98)})
        folder.add("b", {0.5: make_report(0.1, 0.9, auroc=0.99)})
        assert folder.chosen((0.5,)) == ("b", 0.5)

    @pytest.mark.parametrize(("tied", "middle"), [((0.2, 0.4, 0.6), 0.4), ((0.2, 0.4), 0.2), ((0.2, 0.4, 0.6, 0.8), 0.4)])
    def test_then_to_the_middle_of_the_tied_thresholds_of_the_first_trial(
        self, folder: Sweep, tied: tuple[float, ...], middle: float
    ) -> None:
        thresholds = (*tied, 0.95)
        for trial_id in ("first", "second"):
            folder.add(trial_id, {t: make_report(0.1 if t in tied else 0.5, 0.9) for t in thresholds})
        assert folder.chosen(thresholds) == ("first", middle)

    def test_a_difference_of_rounding_is_a_tie(self, folder: Sweep) -> None:
        folder.add("a", {0.5: make_report(0.1, 0.9 + 1e-9, auroc=0.98)})
        folder.add("b", {0.5: make_report(0.1, 0.9, auroc=0.99)})
        assert folder.chosen((0.5,)) == ("b", 0.5)


def with_bound(report: EvalReport, bound: float) -> EvalReport:
    """A report whose threshold bounds the rate of ordinary records that open a gate."""
    metric = Metric(name="gate/record_open_upper", value=bound, direction="lower", num_samples=172, digest="c")
    return report.model_copy(update={"metrics": (*report.metrics, metric)})


class TestCalibration:
    def test_a_trial_is_read_at_the_thresholds_that_it_was_scored_at(self, folder: Sweep) -> None:
        raised = 0.7300000190734863
        folder.add("a", {raised: make_report(0.1, 0.9), 0.8: make_report(0.2, 0.9)}, thresholds=(raised, 0.8))
        folder.add("b", {0.3: make_report(0.3, 0.9)}, thresholds=(0.3,))
        outcome = collect(Recipe(), folder.folder, (0.2, 0.3, 0.8))
        assert [(p.trial.trial_id, p.threshold) for p in outcome.points] == [("a", raised), ("a", 0.8), ("b", 0.3)]
        assert outcome.chosen.threshold == raised

    def test_a_point_that_can_be_certified_goes_before_a_better_one_that_cannot(self, folder: Sweep) -> None:
        folder.add("better", {0.5: with_bound(make_report(0.0, 1.0), 0.031)})
        folder.add("promising", {0.5: with_bound(make_report(0.1, 0.99), 0.03)})
        assert folder.chosen((0.5,)) == ("promising", 0.5)
        outcome = collect(Recipe(), folder.folder, (0.5,))
        assert [point.trial.trial_id for point in outcome.front] == ["better"]  # what was measured stays as it is
        strict = Recipe().replace({"calibration": {"alpha": 0.01}})
        assert collect(strict, folder.folder, (0.5,)).chosen.trial.trial_id == "better"  # none can


class TestWhichTrialsCount:
    def test_a_stopped_trial_is_shown_but_neither_on_the_front_nor_chosen(self, folder: Sweep) -> None:
        folder.add("stopped", {0.5: make_report(0.0, 1.0)}, stopped_early=True)
        folder.add("whole", {0.5: make_report(0.2, 0.9)})
        outcome = collect(Recipe(), folder.folder, (0.5,))
        assert [point.trial.trial_id for point in outcome.points] == ["stopped", "whole"]
        assert [point.trial.trial_id for point in outcome.front] == ["whole"]
        assert outcome.chosen.trial.trial_id == "whole"

    def test_failed_and_unfinished_trials_have_no_points(self, folder: Sweep) -> None:
        folder.add("failed", {}, failure="TrainingError: no gradient")
        folder.add("running", {0.5: make_report(0.0, 1.0)}, done=False)
        folder.add("whole", {0.5: make_report(0.2, 0.9)})
        outcome = collect(Recipe(), folder.folder, (0.5,))
        assert [trial.trial_id for trial in outcome.trials] == ["failed", "running", "whole"]
        assert [point.trial.trial_id for point in outcome.points] == ["whole"]

    def test_trials_that_were_given_up_are_tried_again_by_the_same_command(self, folder: Sweep) -> None:
        folder.add("given-up", {}, done=False)
        with pytest.raises(
            TrainingError, match=r"got 1 trial.*none of them did; what became of them is said above; the same command"
        ):
            collect(Recipe(), folder.folder, (0.5,))

    def test_no_trial_ran_to_the_end(self, folder: Sweep) -> None:
        folder.add("a", {0.5: make_report(0.0, 1.0)}, stopped_early=True)
        with pytest.raises(
            TrainingError, match=r"at least one trial that runs to the end, got 1 trial.*raise `sweep\.grace_reports`"
        ):
            collect(Recipe(), folder.folder, (0.5,))

    def test_every_trial_failed_and_the_message_says_of_what(self, folder: Sweep) -> None:
        for trial_id in ("a", "b"):
            folder.add(trial_id, {}, failure="ConfigError: rank 900")
        with pytest.raises(
            TrainingError, match=r"got 2 trial\(s\) and none of them did; they failed with: ConfigError: rank 900$"
        ):
            collect(Recipe(), folder.folder, (0.5,))

    def test_an_empty_sweep(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match=r"got 0 trial\(s\)"):
            collect(Recipe(), tmp_path, (0.5,))

    def test_trials_are_read_in_the_order_of_their_numbers_whatever_the_clock_said(self, folder: Sweep) -> None:
        for trial_id in ("z", "a", "m"):
            folder.add(trial_id, {}, started=float(ord(trial_id)))
        assert [record.trial_id for record in read_trials(folder.folder)] == ["z", "a", "m"]


class TestCooperativeASHA:
    """Rungs at 2, 4, 8, ... steps; one of two trials is kept at each."""

    @pytest.fixture
    def asha(self, tmp_path: Path) -> CooperativeASHA:
        return self.make(tmp_path)

    @staticmethod
    def make(folder: Path) -> CooperativeASHA:
        return CooperativeASHA(folder, grace_period=2, reduction_factor=2, max_t=100)

    @staticmethod
    def report(asha: CooperativeASHA, trial_id: str, step: int, score: float, **more: Any) -> str:
        trial = SimpleNamespace(config={TRIAL_KEY: trial_id})
        return asha.on_trial_result(None, trial, {"step": step, "probe/score": score, **more})

    @staticmethod
    def stop_files(folder: Path) -> list[str]:
        return [path.parent.name for path in folder.glob(f"trials/*/{STOP_FILE}")]

    def test_a_trial_that_falls_behind_is_asked_and_goes_on(self, asha: CooperativeASHA, tmp_path: Path) -> None:
        assert self.report(asha, "good", 2, 0.9) == TrialScheduler.CONTINUE
        assert self.stop_files(tmp_path) == []
        assert self.report(asha, "bad", 2, 0.1) == TrialScheduler.CONTINUE
        assert self.stop_files(tmp_path) == ["bad"]

    def test_it_is_asked_once(self, asha: CooperativeASHA, tmp_path: Path) -> None:
        self.report(asha, "good", 2, 0.9)
        self.report(asha, "bad", 2, 0.1)
        (tmp_path / "trials/bad" / STOP_FILE).unlink()
        self.report(asha, "good", 4, 0.9)
        assert self.report(asha, "bad", 4, 0.1) == TrialScheduler.CONTINUE
        assert self.stop_files(tmp_path) == []

    def test_before_the_grace_period_nobody_is_asked(self, asha: CooperativeASHA, tmp_path: Path) -> None:
        self.report(asha, "good", 1, 0.9)
        self.report(asha, "bad", 1, 0.1)
        assert self.stop_files(tmp_path) == []

    def test_the_final_score_of_a_trial_is_no_report_of_training(self, asha: CooperativeASHA, tmp_path: Path) -> None:
        self.report(asha, "good", 2, 0.9)
        # beyond `max_t` ASHA would stop whatever the score
        assert self.report(asha, "bad", 101, 0.1, scored=True) == TrialScheduler.CONTINUE
        assert self.stop_files(tmp_path) == []

    def test_its_rungs_outlive_it(self, asha: CooperativeASHA, tmp_path: Path) -> None:
        self.report(asha, "good", 2, 0.9)
        self.report(asha, "good", 3, 0.95)
        again = self.make(tmp_path)
        self.report(again, "good", 2, 0.0)  # which the trial hands in again
        self.report(again, "bad", 2, 0.1)
        assert self.stop_files(tmp_path) == ["bad"]

    def test_a_request_that_was_decided_is_made_by_whoever_comes_next(self, asha: CooperativeASHA, tmp_path: Path) -> None:
        self.report(asha, "good", 2, 0.9)
        self.report(asha, "bad", 2, 0.1)
        (tmp_path / "trials/bad" / STOP_FILE).unlink()
        with (tmp_path / "rungs.jsonl").open("a") as journal:
            journal.write('{"trial": "go')  # killed here
        again = self.make(tmp_path)
        assert self.stop_files(tmp_path) == ["bad"]
        self.report(again, "other", 2, 0.1)
        assert sorted(self.stop_files(tmp_path)) == ["bad", "other"]
        self.make(tmp_path)
        assert len((tmp_path / "rungs.jsonl").read_text().splitlines()) == 4

    def test_the_final_score_is_on_no_rung(self, asha: CooperativeASHA, tmp_path: Path) -> None:
        self.report(asha, "good", 2, 0.5)
        asha.on_trial_complete(None, SimpleNamespace(trial_id="x"), {"step": 101, "probe/score": 5.0, "scored": True})
        self.report(asha, "other", 4, 0.9)
        assert self.stop_files(tmp_path) == []
