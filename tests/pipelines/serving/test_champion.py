"""Following the champion: what is served when it moves, when the registry is away, and when a version cannot be served."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from grun.config import Recipe
from grun.errors import ModelError, TrackingError
from grun.lm import FrozenLM, freeze
from pipelines.registry import CHAMPION
from pipelines.serving.champion import Champion, Found, LocalCopy, RegisteredChampion, served_names
from pipelines.serving.follower import Follower
from pipelines.serving.loading import Served, load_base, load_version
from pipelines.serving.metrics import Metrics
from tests.pipelines.serving.shelf import Shelf


@dataclass
class Sometimes:
    """The registry, when it is not away."""

    registered: RegisteredChampion
    away: bool = False
    lost_on_the_way: bool = False

    def look(self) -> Champion | None:
        if self.away:
            raise TrackingError("MLflow must be able to read an alias, got a connection that is refused")
        return self.registered.look()

    def fetch(self, champion: Champion) -> Found:
        if self.lost_on_the_way:
            raise TrackingError("MLflow must be able to download a model, got a connection that is reset")
        return self.registered.fetch(champion)


@dataclass
class Server:
    """A follower, and what it has put to work."""

    recipe: Recipe
    base: FrozenLM
    pinned: int | None = None
    installed: list[Served] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        folder = self.recipe.output / "serving"
        names = served_names(self.recipe)
        self.source = Sometimes(RegisteredChampion(self.recipe, names, folder, self.pinned))
        copy = LocalCopy(names, folder, self.pinned)
        self.follower = Follower(self.source, copy, self._load, self.installed.append, self.metrics, poll_seconds=60)

    def _load(self, found: Found) -> Served:
        return load_version(found.champion.name, found.champion.version, found.folder, self.base)

    def poll(self) -> list[tuple[str, int]]:
        """Ask once; return what was put to work so far."""
        self.follower.poll()
        return [(served.name, served.version) for served in self.installed]


@pytest.fixture
def server(recipe: Recipe, base: FrozenLM) -> Server:
    return Server(recipe, base)


def copies(recipe: Recipe) -> set[str]:
    return {path.name for path in (recipe.output / "serving" / recipe.registered_model).glob("v*")}


def test_the_champion_is_served_and_followed(shelf: Shelf, server: Server, recipe: Recipe) -> None:
    first = shelf.promote(shelf.register(shelf.stack([("a", 1)])))
    assert server.poll() == [(shelf.name, first)]
    assert server.poll() == [(shelf.name, first)], "a version that is served is not loaded again"
    second = shelf.promote(shelf.register(shelf.stack([("a", 1), ("b", 2)])))
    assert server.poll() == [(shelf.name, first), (shelf.name, second)]
    assert server.installed[-1].request_ids == ("a", "b")
    assert copies(recipe) == {f"v{second}"}, "older copies go"
    with shelf.registry.promotion_lock(shelf.name, "alice") as lease:
        shelf.registry.rollback(lease)
    assert server.poll()[-1] == (shelf.name, first)
    assert server.follower.status.error is None
    assert server.follower.status.origin == "registry"
    page = server.metrics.page().decode()
    assert 'grun_swaps_total{outcome="done"} 3.0' in page
    assert f'grun_champion_version{{digest="{server.installed[-1].digest}",model="{shelf.name}"}} {first}.0' in page
    assert page.count("grun_champion_version{") == 1


def test_a_single_adapter_is_served_like_a_stack(shelf: Shelf, server: Server) -> None:
    version = shelf.promote(shelf.register(shelf.adapter("a", 1)))
    assert server.poll() == [(shelf.name, version)]
    [served] = server.installed
    assert served.request_ids == ("a",)
    assert served.columns == (("a", 1), ("a", 3))
    assert served.thresholds == (0.5, 0.5)


def test_the_ledgers_model_comes_first_once_it_has_a_champion(shelf: Shelf, server: Server, recipe: Recipe) -> None:
    assert served_names(recipe) == (recipe.ledger_model, recipe.registered_model)
    ledger = Shelf(shelf.tracker, shelf.lm, shelf.folder / "ledger", recipe.ledger_model)
    candidate = ledger.register(ledger.stack([("a", 1)]))
    shelf.promote(shelf.register(shelf.adapter("a", 1)))
    assert server.poll() == [(shelf.name, 1)], "a candidate is no champion"
    ledger.promote(candidate)
    assert server.poll() == [(shelf.name, 1)], "the name stays: clients ask for it"
    assert Server(recipe, shelf.lm).poll() == [(recipe.ledger_model, 1)]


def test_a_named_model_is_served_and_no_other(shelf: Shelf, recipe: Recipe, base: FrozenLM) -> None:
    shelf.promote(shelf.register(shelf.adapter("a", 1)))
    named = Server(recipe.replace({"serving": {"registered_model": "grun-other"}}), base)
    assert named.poll() == []
    assert "must name a champion, got none" in str(named.follower.status.error)


def test_a_pinned_version_is_served_whatever_the_champion_is(shelf: Shelf, recipe: Recipe, base: FrozenLM) -> None:
    for seed in (1, 2):
        shelf.promote(shelf.register(shelf.adapter("a", seed)))
    assert Server(recipe, base, pinned=1).poll() == [(shelf.name, 1)]
    assert Server(recipe, base, pinned=7).poll() == []


def test_away_while_serving_it_goes_on_and_says_so(shelf: Shelf, server: Server) -> None:
    shelf.promote(shelf.register(shelf.adapter("a", 1)))
    server.poll()
    server.source.away = True
    assert server.poll() == [(shelf.name, 1)]
    assert server.follower.status.registry_reachable is False
    assert "connection that is refused" in str(server.follower.status.error)
    assert "grun_registry_reachable 0.0" in server.metrics.page().decode()
    shelf.promote(shelf.register(shelf.adapter("a", 2)))
    server.source.away = False
    assert server.poll()[-1] == (shelf.name, 2)
    assert server.follower.status.error is None


def test_away_at_start_the_last_copy_is_served(shelf: Shelf, server: Server, recipe: Recipe, base: FrozenLM) -> None:
    shelf.promote(shelf.register(shelf.stack([("a", 1), ("b", 2)])))
    server.poll()
    restarted = Server(recipe, base)
    restarted.source.away = True
    assert restarted.poll() == [(shelf.name, 1)]
    assert restarted.installed[0].digest == server.installed[0].digest
    assert restarted.follower.status.origin == "local copy"
    assert restarted.follower.status.registry_reachable is False
    restarted.source.away = False
    assert restarted.poll() == [(shelf.name, 1)], "it is the same version"
    assert str(restarted.follower.status.origin) == "registry"


def test_away_at_start_without_a_copy_it_waits(shelf: Shelf, server: Server) -> None:
    server.source.away = True
    assert server.poll() == []
    assert server.follower.status.origin is None
    shelf.promote(shelf.register(shelf.adapter("a", 1)))
    server.source.away = False
    assert server.poll() == [(shelf.name, 1)]


def _change_a_byte(copy: Path) -> None:
    path = copy / "stack" / "adapters" / "01-a" / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change_a_byte, "and the local copy: "),
        (lambda copy: (copy / "stack" / "adapters" / "01-a" / "adapter.safetensors").unlink(), "and the local copy: "),
        (shutil.rmtree, "and the local copy: "),
        (lambda copy: (copy.parent / "champion.json").write_text("{}"), "the note of what was served last"),
        (lambda copy: (copy.parent / "champion.json").write_text('{"version": 1, "digest": "0"}'), "must be what was served"),
    ],
)
def test_a_damaged_copy_is_not_served(
    shelf: Shelf, server: Server, recipe: Recipe, base: FrozenLM, damage: Callable[[Path], object], message: str
) -> None:
    shelf.promote(shelf.register(shelf.stack([("a", 1)])))
    server.poll()
    damage(recipe.output / "serving" / recipe.registered_model / "v1")
    restarted = Server(recipe, base)
    restarted.source.away = True
    assert restarted.poll() == []
    assert message in str(restarted.follower.status.error)
    restarted.source.away = False
    assert restarted.poll() == [(shelf.name, 1)], "the registry gives it again"


def _other_base(shelf: Shelf) -> None:
    """Register adapters of another base from now on."""
    lm = shelf.lm
    shelf.lm = freeze(lm.model, lm.tokenizer, type(lm.info)("other", None, "f" * 64))


def _remove(shelf: Shelf, version: int) -> None:
    shelf.file_of(version, "stack/adapters/02-b/adapter.safetensors").unlink()


def _change(shelf: Shelf, version: int) -> None:
    path = shelf.file_of(version, "stack/stack.json")
    path.write_text(path.read_text().replace("sum", "max_gate"))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (lambda _shelf: None, _remove, "02-b"),
        (lambda _shelf: None, _change, "must be"),
        (_other_base, lambda _shelf, _version: None, "loads only on the base it was"),
    ],
    ids=["missing file", "changed file", "other base"],
)
def test_a_version_that_cannot_be_served_leaves_the_old_one(
    shelf: Shelf,
    server: Server,
    recipe: Recipe,
    base: FrozenLM,
    caplog: pytest.LogCaptureFixture,
    before: Callable[[Shelf], None],
    after: Callable[[Shelf, int], None],
    message: str,
) -> None:
    shelf.promote(shelf.register(shelf.stack([("a", 1)])))
    server.poll()
    before(shelf)
    bad = shelf.register(shelf.stack([("a", 1), ("b", 2)]))
    after(shelf, bad)
    shelf.promote(bad)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert server.poll() == [(shelf.name, 1)]
    assert message in str(server.follower.status.error)
    assert server.follower.status.registered_version == bad
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1, "said once, not at every poll"
    assert 'grun_swaps_total{outcome="failed"} 3.0' in server.metrics.page().decode()
    assert "v1" in copies(recipe)
    # a restart while the champion is broken is no worse
    assert Server(recipe, base).poll() == [(shelf.name, 1)]


def test_lost_on_the_way_the_old_version_stays_and_the_next_poll_tries_again(shelf: Shelf, server: Server) -> None:
    shelf.promote(shelf.register(shelf.adapter("a", 1)))
    server.poll()
    shelf.promote(shelf.register(shelf.adapter("a", 2)))
    server.source.lost_on_the_way = True
    assert server.poll() == [(shelf.name, 1)]
    assert "connection that is reset" in str(server.follower.status.error)
    server.source.lost_on_the_way = False
    assert server.poll()[-1] == (shelf.name, 2)


def test_without_an_alias_the_served_version_goes_on(shelf: Shelf, server: Server) -> None:
    shelf.promote(shelf.register(shelf.adapter("a", 1)))
    server.poll()
    shelf.tracker.client.delete_registered_model_alias(shelf.name, CHAMPION)
    assert server.poll() == [(shelf.name, 1)]
    assert "version 1 goes on" in str(server.follower.status.error)


def test_the_base_is_the_recipes_copy_or_the_one_that_the_adapter_names(shelf: Shelf, recipe: Recipe, base: FrozenLM) -> None:
    folder = shelf.adapter("a", 1)
    assert load_base(folder, recipe.model, use_gpu=False).info.digest == base.info.digest
    unnamed = recipe.model.model_copy(update={"path": None})
    assert load_base(folder, unnamed, use_gpu=False).info.digest == base.info.digest
    with pytest.raises(ModelError, match="nowhere"):
        load_base(folder, recipe.model.model_copy(update={"path": "./nowhere"}), use_gpu=False)
