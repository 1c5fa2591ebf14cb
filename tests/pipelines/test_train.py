"""`train` on a real local Ray: what a run leaves behind, and that an interrupted run ends where an uninterrupted one does."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from grun.adapters import read_card
from grun.config import Recipe
from grun.lm import load_frozen_lm
from pipelines.entry import OUTCOME_FILE, STOP_FILE
from pipelines.prepared import plan
from pipelines.registry import Registry
from tests.pipelines.runs import Run, TrainIt, training_on_one_cluster

pytestmark = [
    pytest.mark.slow,  # every run starts worker processes, which import DeepSpeed
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def train_it(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., Recipe]) -> Iterator[TrainIt]:
    """Trains a recipe by the command, on one cluster of two CPUs and into one output folder for all tests."""
    with training_on_one_cluster(make_recipe, tmp_path_factory.mktemp("train")) as train_it:
        yield train_it


@pytest.fixture(scope="module")
def straight(train_it: TrainIt) -> Run:
    """An uninterrupted run on two DeepSpeed workers."""
    return train_it("straight")


def test_a_run_leaves_an_adapter_and_every_step_behind(straight: Run) -> None:
    assert sorted(path.name for path in (straight.folder / "adapter").iterdir()) == ["adapter.safetensors", "adapter_config.json"]
    assert [line["step"] for line in straight.spool] == [1, 2, 3, 4, 5, 6]
    outcome = straight.outcome
    upper = load_frozen_lm(str(straight.recipe.model.path), cut=1).model.num_parameters()
    share = upper / load_frozen_lm(str(straight.recipe.model.path)).model.num_parameters()
    assert 0.49 * share < outcome.pop("resident_share") <= 0.55 * share
    assert outcome.pop("wall_seconds") > 0
    assert outcome.pop("cache_bytes") > 0
    assert (len(outcome.pop("nodes")), outcome.pop("hosts")) == (2, [socket.gethostname()] * 2)
    assert all(outcome.pop("gate_values").values())
    assert outcome.pop("flags").keys() <= {"gate_never_opens", "gate_always_opens"}, "of six steps on a base that knows nothing"
    assert outcome == {"steps": 6, "total_steps": 6, "stopped_early": False, "num_workers": 2}


def test_a_run_is_recorded_and_its_adapter_registered_as_candidate(straight: Run) -> None:
    run = straight.recorded
    assert run.info.status == "FINISHED"
    assert run.data.params["train.learning_rate"] == "0.001"
    assert run.data.params["objective.forget.kind"] == "gd"
    assert run.data.metrics["train/loss"] == straight.spool[-1]["metrics"]["train/loss"]
    history = straight.tracker.client.get_metric_history(run.info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == {
        line["step"]: line["metrics"]["train/loss"] for line in straight.spool
    }
    version = straight.tracker.client.get_model_version_by_alias("grun-towns", "candidate")
    assert version.run_id == run.info.run_id
    assert Registry(straight.tracker).version_of("grun-towns", "candidate") == int(version.version)


def test_a_run_certifies_what_it_registers_and_certifies_it_again_without_training(train_it: TrainIt) -> None:
    # of six held-out records four are calibrated on and two are checked, which is enough for a promise as loose as this
    loose = {"alpha": 0.7, "delta": 0.2}
    run = train_it("certified", calibration=loose, train={"num_workers": 1, "engine": "torch"})
    card = read_card(run.folder / "adapter")
    certificate = card.certificate
    assert certificate is not None
    assert (certificate.calibration.num_records, certificate.check.num_records) == (4, 2)
    assert certificate.thresholds == {1: card.adapter.gate_threshold, 3: card.adapter.gate_threshold}
    assert card.adapter.gate_threshold is not None
    assert certificate.calibration.upper_bound <= 0.7
    version = run.tracker.client.get_model_version_by_alias("grun-towns", "candidate")
    assert version.run_id == run.recorded.info.run_id
    assert version.tags["certificate_sentence"] == certificate.sentence
    assert version.tags["gate_threshold"] == str(card.adapter.gate_threshold)
    spool = run.spool
    again = train_it("certified", calibration={**loose, "delta": 0.25}, train={"num_workers": 1, "engine": "torch"})
    assert again.spool == spool
    anew = read_card(again.folder / "adapter").certificate
    assert anew is not None
    assert (anew.delta, anew.tensors_sha256) == (0.25, certificate.tensors_sha256)


def test_without_enough_records_a_run_says_so_and_refuses_if_promotion_asks(
    train_it: TrainIt, straight: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_card(straight.folder / "adapter").certificate is None
    refused = train_it("strict", status=2, promotion={"require_certificate": True})
    assert "takes at least 99 records in each half of the holdout set, which has 4 and 2" in capsys.readouterr().err
    assert not refused.folder.exists()


def test_data_are_recorded_by_digest_and_never_by_text(straight: Run) -> None:
    request = plan(straight.recipe).request
    inputs = straight.recorded.inputs
    assert inputs is not None
    recorded = {
        next(tag.value for tag in entry.tags if tag.key == "mlflow.data.context"): entry.dataset
        for entry in inputs.dataset_inputs
    }
    assert {name: json.loads(dataset.source)["sha256"] for name, dataset in recorded.items()} == request.data_digests
    for path in (straight.recipe.output / "mlflow").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"Ilva" not in content, path
            assert b"by the sea" not in content, path


def test_a_stopped_run_goes_on_with_another_number_of_workers_to_the_same_adapter(train_it: TrainIt, straight: Run) -> None:
    folder = straight.folder.with_name("stopped")
    folder.mkdir(parents=True)
    (folder / STOP_FILE).touch()
    stopped = train_it("stopped")
    assert stopped.folder == folder
    assert (stopped.outcome["steps"], stopped.outcome["stopped_early"]) == (2, True)
    assert [line["step"] for line in stopped.spool] == [1, 2]
    for name in (STOP_FILE, OUTCOME_FILE):
        (folder / name).unlink()
    continued = train_it("stopped", train={"num_workers": 1})
    assert [line["step"] for line in continued.spool] == [1, 2, 3, 4, 5, 6]
    outcome = continued.outcome
    assert outcome.pop("resident_share") < 0.7  # the whole of what lies above the cut, on one worker
    assert outcome.pop("wall_seconds") is None  # not known of a run that was interrupted
    assert outcome.pop("cache_bytes") > 0
    assert (len(outcome.pop("nodes")), outcome.pop("hosts")) == (1, [socket.gethostname()])
    assert all(outcome.pop("gate_values").values())
    assert outcome.pop("flags").keys() <= {"gate_never_opens", "gate_always_opens"}, "of six steps on a base that knows nothing"
    assert outcome == {"steps": 6, "total_steps": 6, "stopped_early": False, "num_workers": 1}
    continued.has_adapter_of(straight)
    assert continued.recorded.info.status == "FINISHED"


def test_a_finished_run_is_not_trained_again(train_it: TrainIt, straight: Run) -> None:
    spool, adapter = straight.spool, (straight.folder / "adapter" / "adapter.safetensors").read_bytes()
    again = train_it("straight")
    assert again.spool == spool
    assert (again.folder / "adapter" / "adapter.safetensors").read_bytes() == adapter
    assert again.recorded.info.status == "FINISHED"  # one run, and not a second one


@pytest.mark.parametrize(
    ("name", "above", "share"),
    [
        ("whole", {"cache": {"mode": "off"}, "train": {"engine": "torch", "num_workers": 1}}, 1.0),
        ("sharded", {"cache": {"mode": "off"}}, 0.5),
        # blocks 2 and 3 of four, and the head, whole on each worker
        ("cached", {"cache": {"mode": "require"}, "train": {"engine": "torch"}}, 0.5),
    ],
)
def test_engines_with_and_without_a_cache_give_the_same_adapter(
    train_it: TrainIt, straight: Run, name: str, above: dict[str, Any], share: float
) -> None:
    other = train_it(name, **above)
    assert other.outcome["resident_share"] == pytest.approx(share, abs=0.05)
    other.has_adapter_of(straight)


def test_other_settings_under_the_same_name_are_refused(
    train_it: TrainIt, straight: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    train_it("straight", status=2, seed=1)
    assert "got other values in ['seed']" in capsys.readouterr().err


def test_more_workers_than_the_cluster_holds_are_refused(train_it: TrainIt, capsys: pytest.CaptureFixture[str]) -> None:
    refused = train_it("crowd", status=2, train={"num_workers": 4})
    assert "got 4 worker(s) that need 4 CPU(s) and 2 in the cluster" in capsys.readouterr().err
    assert not refused.folder.exists()
