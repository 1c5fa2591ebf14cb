"""MLflow fails while a version is registered or an alias moves: nothing is half registered, promoted or rolled back for good."""

from pathlib import Path

import pytest

from grun.adapters import read_card
from grun.config import Recipe
from grun.errors import OutageError
from pipelines import train
from pipelines.benchmarks.proxy import Act, Asked
from pipelines.registry import CANDIDATE, CHAMPION, Registry, Verdict
from pipelines.tracking import Tracker
from tests.faults.injection import Injection
from tests.faults.outage_site import GROUP, MARKS, Site
from tests.faults.table import row

pytestmark = MARKS


@row(
    GROUP,
    "server fails between the upload of an adapter and its alias",
    where="train, sweep: registering",
    sees="status 2; no candidate; the same command ends well, with one version",
    broken=Injection("pipelines.registering:_only_version", "skip", always=True),
)
def test_what_is_half_registered_is_no_candidate(site: Site, healthy: Recipe) -> None:
    adapter, name = train.run_folder(healthy) / "adapter", "half-registered"
    base = read_card(adapter).base
    run_id = site.tracker.start_run("half")
    through = Registry(Tracker(site.proxy.uri, "grun", site.output))
    site.proxy.rule = lambda asked: "drop" if asked.path.endswith("/alias") else "pass"
    for _ in range(2):
        with pytest.raises(OutageError, match="register a candidate"):
            through.register_candidate(name, run_id, adapter, base)
        assert Registry(site.tracker).version_of(name, CANDIDATE) is None
    site.proxy.heal()
    assert through.register_candidate(name, run_id, adapter, base) == 1
    assert Registry(site.tracker).version_of(name, CANDIDATE) == 1
    assert len(site.tracker.client.search_model_versions(f"name = '{name}'")) == 1
    assert len(site.tracker.client.search_logged_models([site.tracker.experiment_id], f"source_run_id = '{run_id}'")) == 1


@row(
    GROUP,
    "server fails right after the champion was moved",
    where="promote",
    sees="status 2; the same command says `promoted already`, and completes record and aliases",
    broken=Injection("pipelines.registry:Registry.finish_promotion", "skip", always=True),
)
def test_a_promotion_that_lost_the_server_is_finished(site: Site, healthy: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = site.recipe("healthy", tracking={"registered_model": "half-promoted"})
    site.run("train", recipe)  # trained already: it is registered under another name
    through = Registry(Tracker(site.proxy.uri, "grun", site.output))
    name = recipe.registered_model
    moved: list[Asked] = []

    def rule(asked: Asked) -> Act:
        if moved:
            return "drop"
        if asked.path.endswith("/alias") and asked.json.get("alias") == CHAMPION:
            moved.append(asked)
            return "lose"
        return "pass"

    site.proxy.rule = rule
    with pytest.raises(OutageError), through.promotion_lock(name, "alice") as lease:
        through.promote(lease, 1, Verdict("promote", ("good",)), expected_champion=None)
    site.proxy.heal()
    direct = Registry(site.tracker)
    assert (direct.version_of(name, CHAMPION), direct.version_of(name, CANDIDATE)) == (1, 1)
    site.tracker.client.delete_registered_model(f"lock.{name}")  # alice's lease has ended
    site.run("promote", recipe)
    assert "promoted already: version 1 of half-promoted" in capsys.readouterr().out
    assert (direct.version_of(name, CHAMPION), direct.version_of(name, CANDIDATE)) == (1, None)
    assert [(record.action, record.version_to, record.status) for record in direct.history(name)] == [("promote", 1, "FINISHED")]


@row(
    GROUP,
    "server fails in the middle of a rollback",
    where="promote --rollback",
    sees="status 2; the same command completes this rollback, and does not begin a second one",
    broken=Injection("pipelines.registry:Registry._half_rolled_back", "skip", always=True),
)
def test_a_rollback_that_lost_the_server_goes_one_version_back(site: Site, healthy: Recipe, tmp_path: Path) -> None:
    name, through, direct = "half-rolled-back", Registry(Tracker(site.proxy.uri, "grun", site.output)), Registry(site.tracker)
    adapter = train.run_folder(healthy) / "adapter"
    for before in (None, 1, 2):
        version = direct.register_candidate(name, site.tracker.start_run("train"), adapter, read_card(adapter).base)
        with direct.promotion_lock(name, "alice") as lease:
            direct.promote(lease, version, Verdict("promote"), expected_champion=before)
    site.proxy.rule = lambda asked: "drop" if asked.path.endswith("/model-versions/delete-tag") else "pass"
    with pytest.raises(OutageError), through.promotion_lock(name, "alice") as lease:
        through.rollback(lease)
    assert direct.version_of(name, CHAMPION) == 2
    site.proxy.heal()
    with through.promotion_lock(name, "alice") as lease:
        assert through.rollback(lease) == (3, 2)
    assert direct.version_of(name, CHAMPION) == 2
    assert [(record.action, record.status) for record in direct.history(name)][-1] == ("rollback", "FINISHED")
    with through.promotion_lock(name, "alice") as lease:
        assert through.rollback(lease) == (2, 1)
