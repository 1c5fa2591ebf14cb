"""The registry against a real SQLite store: candidates, the champion, two promoters at once, and the record of it all."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from safetensors.torch import save_file

from grun.errors import AdapterError, OutageError, PromotionBusyError, PromotionError, TrackingError
from grun.lm import BaseInfo
from pipelines import mlflow_flavor
from pipelines.lease import Lease
from pipelines.registry import CANDIDATE, CHAMPION, Registry, Verdict
from pipelines.tracking import Tracker

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

BASE = BaseInfo(name="hub/base", revision=None, digest="d" * 64)
GOOD = Verdict("promote", ("forgotten", "not damaged"), {"forget/rouge_l_recall": 0.1})


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("a store")
    return Tracker(f"sqlite:///{folder / 'mlflow.db'}", "grun", folder / "artifacts")


@pytest.fixture
def registry(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry, in a current folder that nothing may be written to."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    yield Registry(tracker)
    assert list(cwd.iterdir()) == []


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def make_adapter(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"rank": 4}))
    save_file({"gate": torch.full((8,), value)}, folder / "adapter.safetensors")
    return folder


def register(registry: Registry, tracker: Tracker, name: str, tmp_path: Path, *, count: int = 1) -> list[int]:
    """Register different adapters, each of a run of its own."""
    return [
        registry.register_candidate(name, tracker.start_run("train"), make_adapter(tmp_path / f"adapter{index}", index), BASE)
        for index in range(count)
    ]


def promote(registry: Registry, name: str, *versions: int) -> None:
    for version in versions:
        with registry.promotion_lock(name, "alice") as lease:
            registry.promote(lease, version, GOOD, expected_champion=registry.version_of(name, CHAMPION))


def logged_models(tracker: Tracker, run_id: str) -> list[str]:
    outputs = tracker.client.get_run(run_id).outputs
    assert outputs is not None
    return [output.model_id for output in outputs.model_outputs]


def stored_adapter(tracker: Tracker, name: str, version: int) -> Path:
    location = tracker.client.get_model_version_download_uri(name, str(version))
    return Path(location.removeprefix("file://").replace("%20", " ")) / "adapter" / "adapter.safetensors"


def test_a_candidate_comes_back_from_the_registry(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    adapter, run_id = make_adapter(tmp_path / "adapter"), tracker.start_run("train")
    version = registry.register_candidate(name, run_id, adapter, BASE, {"request": "r-1"})
    assert (version, registry.version_of(name, CANDIDATE), registry.version_of(name, CHAMPION)) == (1, 1, None)
    found, folder = registry.download(name, CANDIDATE, tmp_path / "into")
    assert (found, folder) == (1, tmp_path / "into" / "v1" / "adapter")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in adapter.iterdir()
    }
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["v1"]
    stored = tracker.client.get_model_version(name, "1")
    assert (stored.run_id, stored.tags["request"]) == (run_id, "r-1")
    assert stored.tags["sha256.adapter.safetensors"] == mlflow_flavor.adapter_digests(adapter)["adapter.safetensors"]
    (model_id,) = logged_models(tracker, run_id)
    assert str(tracker.client.get_logged_model(model_id).status) == "READY"


def test_a_download_replaces_the_one_before(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    register(registry, tracker, name, tmp_path)
    for _ in range(2):
        _, folder = registry.download(name, 1, tmp_path / "into")
        (folder / "scribble.txt").write_text("")
    assert registry.download(name, "candidate", tmp_path / "into")[0] == 1
    assert not (folder / "scribble.txt").exists()


def test_the_same_adapter_of_the_same_run_is_registered_once(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    adapter, run_id = make_adapter(tmp_path / "adapter"), tracker.start_run("train")
    first = registry.register_candidate(name, run_id, adapter, BASE)
    tracker.client.delete_registered_model_alias(name, CANDIDATE)
    assert registry.register_candidate(name, run_id, adapter, BASE) == first == registry.version_of(name, CANDIDATE)
    make_adapter(adapter, 2.0)
    assert registry.register_candidate(name, run_id, adapter, BASE) == 2 == registry.version_of(name, CANDIDATE)


def test_what_is_not_an_adapter_leaves_nothing(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    adapter, run_id = make_adapter(tmp_path / "adapter"), tracker.start_run("train")
    (adapter / "optimizer.pt").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"optimizer\.pt"):
        registry.register_candidate(name, run_id, adapter, BASE)
    assert logged_models(tracker, run_id) == []
    with pytest.raises(TrackingError, match="register a candidate"):
        registry.register_candidate(name, "no-such-run", make_adapter(tmp_path / "other"), BASE)
    assert tracker.client.search_registered_models(f"name = '{name}'") == []


def test_an_adapter_that_the_artifact_store_damages_is_not_registered(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = tracker.client.log_model_artifacts

    def damaging(model_id: str, local_dir: str) -> None:
        content = Path(local_dir, "adapter", "adapter.safetensors")
        content.write_bytes(content.read_bytes()[:-1])
        upload(model_id, local_dir)

    monkeypatch.setattr(tracker.client, "log_model_artifacts", damaging)
    with pytest.raises(AdapterError, match="must be the ones that were saved"):
        register(registry, tracker, name, tmp_path)
    assert tracker.client.search_registered_models(f"name = '{name}'") == []


def test_a_version_without_its_alias_does_not_stay_behind(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    def refuse(*_: str) -> None:
        raise MlflowException("no", PERMISSION_DENIED)

    monkeypatch.setattr(tracker.client, "set_registered_model_alias", refuse)
    with pytest.raises(TrackingError, match="register a candidate"):
        register(registry, tracker, name, tmp_path)
    assert tracker.client.search_model_versions(f"name = '{name}'") == []


def test_an_outage_before_the_alias_leaves_what_the_next_attempt_finds(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def away(*_: str) -> None:
        raise MlflowException("no answer")

    adapter, run_id = make_adapter(tmp_path / "adapter"), tracker.start_run("train")
    with monkeypatch.context() as patched:
        patched.setattr(tracker.client, "set_registered_model_alias", away)
        with pytest.raises(OutageError, match="the same command goes on"):
            registry.register_candidate(name, run_id, adapter, BASE)
    assert registry.version_of(name, CANDIDATE) is None
    assert registry.register_candidate(name, run_id, adapter, BASE) == 1 == registry.version_of(name, CANDIDATE)
    assert len(logged_models(tracker, run_id)) == 1


def test_a_tampered_artifact_is_refused(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    register(registry, tracker, name, tmp_path)
    save_file({"gate": torch.zeros(8) - 1}, stored_adapter(tracker, name, 1))
    with pytest.raises(AdapterError, match="must be the ones that were saved"):
        registry.download(name, 1, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_an_artifact_whose_digests_were_forged_as_well_is_refused(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    register(registry, tracker, name, tmp_path)
    path = stored_adapter(tracker, name, 1)
    before = mlflow_flavor.adapter_digests(path.parent)
    save_file({"gate": torch.zeros(8) - 1}, path)
    after = mlflow_flavor.adapter_digests(path.parent)
    model_file = path.parents[1] / "MLmodel"
    model_file.write_text(model_file.read_text().replace(before[path.name], after[path.name]))
    with pytest.raises(AdapterError, match="must be the ones that were registered"):
        registry.download(name, 1, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_what_is_not_registered_cannot_be_downloaded(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    with pytest.raises(PromotionError, match=r"`champion` of .*which points to none"):
        registry.download(name, CHAMPION, tmp_path)
    register(registry, tracker, name, tmp_path)
    with pytest.raises(PromotionError, match="must be in the registry, got 9"):
        registry.download(name, 9, tmp_path)


def test_promotion_moves_the_champion_and_says_who_when_and_from_where(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    register(registry, tracker, name, tmp_path, count=2)
    promote(registry, name, 1, 2)
    assert (registry.version_of(name, CHAMPION), registry.version_of(name, CANDIDATE)) == (2, None)
    first, second = (tracker.client.get_model_version(name, version).tags for version in ("1", "2"))
    assert (first["previous_champion"], second["previous_champion"]) == ("", "1")
    assert (second["promoted_by"], second["decision"]) == ("alice", "promote")
    assert second["promoted_at"].endswith("+00:00")


def test_promotion_leaves_another_candidate_alone(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    register(registry, tracker, name, tmp_path, count=2)
    promote(registry, name, 1)
    assert (registry.version_of(name, CHAMPION), registry.version_of(name, CANDIDATE)) == (1, 2)


def test_a_champion_that_changed_since_the_judgement_stops_the_promotion(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    register(registry, tracker, name, tmp_path, count=3)
    promote(registry, name, 1, 2)
    with registry.promotion_lock(name, "bob") as lease:
        with pytest.raises(PromotionError, match="got version 2 instead of 1; judge the candidate again"):
            registry.promote(lease, 3, GOOD, expected_champion=1)
        with pytest.raises(PromotionError, match="got version 2 instead of None"):
            registry.promote(lease, 3, GOOD, expected_champion=None)
        with pytest.raises(PromotionError, match="is it already"):
            registry.promote(lease, 2, GOOD, expected_champion=2)
        with pytest.raises(PromotionError, match="must be in the registry, got 9"):
            registry.promote(lease, 9, GOOD, expected_champion=2)
    assert registry.version_of(name, CHAMPION) == 2
    assert len(registry.history(name)) == 2


def test_a_crash_before_the_alias_leaves_the_old_champion_and_a_failed_record(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, tracker, name, tmp_path, count=2)
    promote(registry, name, 1)

    def killed(*_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tracker.client, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            promote(registry, name, 2)
    assert registry.version_of(name, CHAMPION) == 1
    assert tracker.client.get_model_version(name, "2").tags["previous_champion"] == "1", "tags come before the alias"
    assert [record.status for record in registry.history(name)] == ["FINISHED", "KILLED"]
    promote(registry, name, 2)
    assert registry.version_of(name, CHAMPION) == 2


def test_rolling_back_twice_goes_back_two_versions_and_then_stops(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    register(registry, tracker, name, tmp_path, count=3)
    promote(registry, name, 1, 2, 3)
    with registry.promotion_lock(name, "bob") as lease:
        assert registry.rollback(lease, reasons=("it broke",)) == (3, 2)
        assert registry.rollback(lease) == (2, 1)
        with pytest.raises(PromotionError, match="records none; promote another"):
            registry.rollback(lease)
    assert registry.version_of(name, CHAMPION) == 1


def test_rolling_back_never_runs_in_a_circle(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    register(registry, tracker, name, tmp_path, count=2)
    promote(registry, name, 1, 2, 1)
    with registry.promotion_lock(name, "bob") as lease:
        assert registry.rollback(lease) == (1, 2)
        assert registry.rollback(lease) == (2, 1)
        with pytest.raises(PromotionError, match="records none"):
            registry.rollback(lease)


def test_a_rollback_needs_something_to_go_back_to(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    register(registry, tracker, name, tmp_path, count=2)
    with registry.promotion_lock(name, "bob") as lease, pytest.raises(PromotionError, match="needs a champion, got none"):
        registry.rollback(lease)
    promote(registry, name, 1, 2)
    tracker.client.delete_model_version(name, "1")
    with registry.promotion_lock(name, "bob") as lease, pytest.raises(PromotionError, match="may have been deleted"):
        registry.rollback(lease)
    assert registry.version_of(name, CHAMPION) == 2


def test_a_declined_candidate_is_recorded_and_no_longer_asks(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    register(registry, tracker, name, tmp_path, count=2)
    promote(registry, name, 1)
    with registry.promotion_lock(name, "bob") as lease:
        registry.decline(lease, 2, Verdict("reject", ("utility fell by 9 %",)))
    assert (registry.version_of(name, CHAMPION), registry.version_of(name, CANDIDATE)) == (1, None)
    assert tracker.client.get_model_version(name, "2").tags["decision"] == "reject"
    assert registry.history(name)[-1].reasons == ("utility fell by 9 %",)


def test_history_tells_every_step_in_order(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    register(registry, tracker, name, tmp_path, count=2)
    promote(registry, name, 1, 2)
    with registry.promotion_lock(name, "bob") as lease:
        registry.rollback(lease)
        registry.decline(lease, 2, Verdict("keep", ("worse",)))
    told = [(r.action, r.version_from, r.version_to, r.decision, r.reasons, r.by, r.status) for r in registry.history(name)]
    assert told == [
        ("promote", None, 1, "promote", ("forgotten", "not damaged"), "alice", "FINISHED"),
        ("promote", 1, 2, "promote", ("forgotten", "not damaged"), "alice", "FINISHED"),
        ("rollback", 2, 1, "rollback", (), "bob", "FINISHED"),
        ("decline", 1, 2, "keep", ("worse",), "bob", "FINISHED"),
    ]
    run = tracker.client.get_run(registry.history(name)[1].run_id)
    assert (run.info.run_name, run.data.tags["kind"]) == ("promotion", "promotion")
    record = json.loads(Path(run.info.artifact_uri.removeprefix("file://").replace("%20", " "), "promotion.json").read_text())
    assert (record["from"], record["to"], record["reasons"], record["details"]) == (
        1,
        2,
        ["forgotten", "not damaged"],
        {"forget/rouge_l_recall": 0.1},
    )
    assert registry.history("another model") == []


def test_of_two_promoters_at_once_one_wins_and_one_is_told_who_did(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    register(registry, tracker, name, tmp_path, count=2)
    promote(registry, name, 1)
    both_judged, both_tried = Barrier(2), Barrier(2)

    def attempt(owner: str) -> str:
        both_judged.wait(timeout=60)
        try:
            with registry.promotion_lock(name, owner) as lease:
                both_tried.wait(timeout=60)
                registry.promote(lease, 2, GOOD, expected_champion=1)
        except PromotionBusyError as error:
            both_tried.wait(timeout=60)
            return str(error)
        return owner

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(attempt, ["alice", "bob"]), key=len)
    winner, told = outcomes
    assert {winner} < {"alice", "bob"}
    assert f"{winner!r} holds its lock" in told
    assert registry.version_of(name, CHAMPION) == 2
    assert len(registry.history(name)) == 2


def test_a_promoter_that_lost_its_lease_can_neither_act_nor_release_anothers(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    register(registry, tracker, name, tmp_path)
    with registry.promotion_lock(name, "slow", lease_seconds=0) as lost:
        with registry.promotion_lock(name, "quick"):
            pass
        with registry.promotion_lock(name, "third"):
            for act in (
                lambda: registry.promote(lost, 1, GOOD, expected_champion=None),
                lambda: registry.rollback(lost),
                lambda: registry.decline(lost, 1, GOOD),
            ):
                with pytest.raises(PromotionError, match="one that 'slow' lost"):
                    act()
            assert registry.version_of(name, CHAMPION) is None
            with pytest.raises(PromotionBusyError, match="'third' holds"), registry.promotion_lock(name, "fourth"):
                pass
    assert registry.history(name) == []


def test_a_lease_of_ones_own_making_is_no_lease(registry: Registry, tracker: Tracker, name: str, tmp_path: Path) -> None:
    register(registry, tracker, name, tmp_path)
    with registry.promotion_lock(name, "alice") as lease:
        forged = Lease(name, "alice", "0" * 32, lease.expires_at)
        with pytest.raises(PromotionError, match="needs its promotion lock"):
            registry.promote(forged, 1, GOOD, expected_champion=None)
        registry.promote(lease, 1, GOOD, expected_champion=None)


def test_a_report_is_stored_with_the_run_that_a_version_came_from(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    versions = register(registry, tracker, name, tmp_path, count=2)
    assert versions == [1, 2]
    assert registry.version_with(name, tmp_path / "adapter0") == 1
    assert registry.version_with(name, make_adapter(tmp_path / "other", 9.0)) is None
    assert registry.version_with("nobody", tmp_path / "adapter0") is None
    registry.attach(name, 1, "evaluation/v1", {"report.html": "<p>one</p>", "report.json": "{}"})
    run_id = registry.run_of(name, 1)
    assert run_id is not None
    assert tracker.client.get_model_version(name, "1").tags["report"] == f"runs:/{run_id}/evaluation/v1/report.html"
    assert "report" not in tracker.client.get_model_version(name, "2").tags
    stored = tracker.client.download_artifacts(run_id, "evaluation/v1/report.html", str(tmp_path))
    assert Path(stored).read_text() == "<p>one</p>"
    with pytest.raises(PromotionError, match="a version must be in the registry"):
        registry.attach(name, 7, "evaluation/v7", {"report.html": ""})


def test_a_verdict_brings_its_pages_into_the_promotion_run(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    [version] = register(registry, tracker, name, tmp_path)
    with registry.promotion_lock(name, "alice") as lease:
        registry.decline(lease, version, Verdict("reject", ("leaks",), texts={"report.html": "<p>no</p>"}))
    [record] = registry.history(name)
    stored = tracker.client.download_artifacts(record.run_id, "report.html", str(tmp_path))
    assert Path(stored).read_text() == "<p>no</p>"


def test_a_retired_champion_leaves_its_versions_and_a_record(
    registry: Registry, tracker: Tracker, name: str, tmp_path: Path
) -> None:
    register(registry, tracker, name, tmp_path, count=2)
    with registry.promotion_lock(name, "alice") as lease:
        with pytest.raises(PromotionError, match="only a champion can be retired, got none"):
            registry.retire(lease, Verdict("retire"))
        registry.promote(lease, 2, GOOD, expected_champion=None)
        assert registry.retire(lease, Verdict("retire", ("nothing is left to be served",))) == 2
        assert registry.version_of(name, CHAMPION) is None
        record = registry.history(name)[-1]
        assert (record.action, record.version_from, record.version_to) == ("retire", 2, None)
        assert record.reasons == ("nothing is left to be served",)
        registry.promote(lease, 1, GOOD, expected_champion=None)
    assert registry.download(name, 2, tmp_path / "into")[0] == 2
