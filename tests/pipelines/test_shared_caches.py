"""Prefix caches at a URI: built by any nodes, fetched by those that read, listed, pruned and purged. Tasks run in this process."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grun.config import Recipe
from grun.errors import CacheError, StorageError
from grun.lm import CachedPass, PrefixCache, load_frozen_lm
from grun.lm.prefix_cache import CACHE_FILE, shard_path
from grun.training import TorchEngine, build_task, fit
from pipelines import cache as cache_verb
from pipelines import caching
from pipelines.caching import ensure_cache
from pipelines.checks import check_storage
from pipelines.node_copies import copies_left, sweep_nodes
from pipelines.prepared import Prepared, plan
from pipelines.shared_caches import RECORDS_FILE, SharedCaches, at_hand
from pipelines.shared_store import Manifest
from pipelines.storage import Storage
from pipelines.tasks import HelperTask
from pipelines.transfers import Teller, reporting


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Nodes:
    """Nodes that differ in their temporary folder; tasks go to them in turn, and everything else runs on the first."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch, self.tasks, self.count = root, monkeypatch, list[str](), 1
        self.go(0)

    def go(self, node: int) -> None:
        """Be on a node from now on."""
        (folder := self.root / f"node{node}").mkdir(exist_ok=True)
        self.monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def run(self, _recipe: Recipe, tasks: Sequence[HelperTask], **_options: object) -> list[Any]:
        results = []
        for number, task in enumerate(tasks):
            self.go(number % self.count)
            results.append(task.function(**task.arguments, progress=self.root / "progress"))
            self.tasks.append(task.function.__name__)
        self.go(0)
        return results


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    (tmp_path / "nodes").mkdir()
    nodes = Nodes(tmp_path / "nodes", monkeypatch)
    monkeypatch.setattr(caching, "run_tasks", nodes.run)
    return nodes


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], tmp_path: Path, place: str, nodes: Nodes) -> Recipe:
    cache = {"mode": "require", "sequences_per_shard": 15, "uri": place}
    return make_recipe(output=str(tmp_path / "outputs"), cache=cache)


@pytest.fixture
def prepared(recipe: Recipe) -> Prepared:
    return plan(recipe)


@pytest.fixture
def shared(recipe: Recipe) -> SharedCaches:
    found = SharedCaches.of(recipe)
    assert found is not None
    return found


def built(recipe: Recipe, prepared: Prepared) -> Path:
    folder = ensure_cache(recipe, prepared, [recipe])
    assert folder is not None
    return folder


def on_this_node(recipe: Recipe, cache: Path) -> Path:
    folder = at_hand(recipe, cache)
    assert folder is not None
    return folder


def trained_on(recipe: Recipe, prepared: Prepared, folder: Path) -> dict[str, torch.Tensor]:
    task = build_task(recipe, prepared.splits, prepared.request, load_frozen_lm(prepared.base))
    engine = TorchEngine(CachedPass(load_frozen_lm(prepared.base, cut=1), PrefixCache.open(folder)))
    fit(engine, task.adapter, task.objective, task.sampler, task.optimizer)
    return dict(task.adapter.state_dict())


class TestBuilding:
    def test_another_cluster_fetches_and_gets_the_same_adapter(
        self, recipe: Recipe, prepared: Prepared, nodes: Nodes, tmp_path: Path
    ) -> None:
        alone = recipe.replace({"cache": {"uri": None}, "output": str(tmp_path / "alone")})
        expected = trained_on(recipe, prepared, built(alone, prepared))
        cache = built(recipe, prepared)
        count = len(nodes.tasks)
        other = recipe.replace({"output": str(tmp_path / "other")})
        nodes.go(7)
        copy = on_this_node(other, built(other, prepared))
        assert len(nodes.tasks) == count, "nothing is built again"
        assert copy.is_relative_to(nodes.root / "node7")
        assert copy.name == cache.name
        found = trained_on(other, prepared, copy)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert copy.stat().st_mode & 0o077 == 0
        assert not (tmp_path / "other" / "cache" / cache.name).exists()

    def test_shards_come_together_from_all_nodes(
        self, recipe: Recipe, prepared: Prepared, nodes: Nodes, shared: SharedCaches
    ) -> None:
        nodes.count = 3
        cache = built(recipe, prepared)
        assert nodes.tasks.count("build_shard") >= 3
        assert len({name for entry in shared.entries() for name in entry.copies}) == 3
        nodes.go(5)
        folder = on_this_node(recipe, cache)
        assert set(json.loads((folder / RECORDS_FILE).read_text())) >= {record.digest for record in prepared.splits.forget}
        PrefixCache.open(folder, caching.plan_cache(recipe, prepared, [recipe]).spec)

    def test_a_build_that_stopped_goes_on_and_was_never_there(
        self, recipe: Recipe, prepared: Prepared, nodes: Nodes, shared: SharedCaches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = SharedCaches.put_shard

        def stopping(self: SharedCaches, name: str, number: int, *more: Any) -> None:
            if number == 1:
                raise KeyboardInterrupt
            put(self, name, number, *more)

        with monkeypatch.context() as stopped:
            stopped.setattr(SharedCaches, "put_shard", stopping)
            with pytest.raises(KeyboardInterrupt):
                built(recipe, prepared)
        [entry] = shared.entries()
        assert (entry.is_finished, entry.is_deleted, shared.state(entry.name)) == (False, False, None)
        assert shared.records(entry.name), "what it was made from is known from the start"
        written: list[int] = []

        def noted(self: SharedCaches, name: str, number: int, *more: Any) -> None:
            written.append(number)
            put(self, name, number, *more)

        monkeypatch.setattr(SharedCaches, "put_shard", noted)
        nodes.go(1)
        PrefixCache.open(on_this_node(recipe, built(recipe, prepared)))
        assert 0 not in written
        assert 1 in written

    def test_a_build_that_divides_the_rows_otherwise_takes_nothing_for_its_own(
        self, recipe: Recipe, prepared: Prepared, shared: SharedCaches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as stopped:
            stopped.setattr(SharedCaches, "gather", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                built(recipe, prepared)
        finer = recipe.replace({"cache": {"sequences_per_shard": 7}})
        PrefixCache.open(on_this_node(finer, built(finer, prepared)), caching.plan_cache(finer, prepared, [finer]).spec)

    def test_where_somebody_was_first_theirs_stays(
        self,
        recipe: Recipe,
        prepared: Prepared,
        shared: SharedCaches,
        nodes: Nodes,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """Two clusters build at once; the slower one finds the other's cache when it is about to publish its own."""
        gather = SharedCaches.gather
        manifests: list[Manifest | None] = []
        slower = recipe.replace({"output": str(tmp_path / "slower")})

        def overtaken(self: SharedCaches, name: str, *more: Any) -> Any:
            found = gather(self, name, *more)
            if not manifests:
                manifests.append(None)
                built(recipe, prepared)
                manifests[0] = shared.store.manifest(name)
            return found

        monkeypatch.setattr(SharedCaches, "gather", overtaken)
        cache = built(slower, prepared)
        assert shared.store.manifest(cache.name) == manifests[0]
        PrefixCache.open(on_this_node(slower, cache))

    def test_what_is_deleted_while_it_is_built_does_not_come_back(
        self, recipe: Recipe, prepared: Prepared, shared: SharedCaches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = SharedCaches.put_shard

        def purged(self: SharedCaches, name: str, number: int, *more: Any) -> None:
            if number == 1:
                shared.delete(name)
            put(self, name, number, *more)

        monkeypatch.setattr(SharedCaches, "put_shard", purged)
        with pytest.raises(CacheError, match=r"a prefix cache must be left alone while it is built, got .* deleted by somebody"):
            built(recipe, prepared)
        assert [path for path in (found.path for found in shared.storage.list()) if "/copies/" not in path] == []

    def test_a_damaged_shard_is_not_shared(
        self, recipe: Recipe, prepared: Prepared, shared: SharedCaches, monkeypatch: Any
    ) -> None:
        put = SharedCaches.put_shard

        def damaged(self: SharedCaches, name: str, number: int, *more: Any) -> None:
            path = shard_path(self.folder(name), number)
            path.write_bytes(path.read_bytes()[:-1] + b"x")
            put(self, name, number, *more)

        monkeypatch.setattr(SharedCaches, "put_shard", damaged)
        with pytest.raises(CacheError, match="got the damaged file"):
            built(recipe, prepared)
        assert not [found for found in shared.storage.list() if "/objects/" in found.path]

    def test_what_requests_have_in_common_is_taken_over(
        self, recipe: Recipe, prepared: Prepared, nodes: Nodes, shared: SharedCaches
    ) -> None:
        common = replace(prepared, splits=replace(prepared.splits, forget=()))
        cache = ensure_cache(recipe, prepared, [recipe], common=common)
        assert cache is not None
        again = nodes.tasks.count("build_shard")
        own = replace(prepared, splits=replace(prepared.splits, forget=prepared.splits.forget[:3]))
        second = ensure_cache(recipe, own, [recipe], common=common)
        assert second is not None
        assert nodes.tasks.count("build_shard") == again + 1
        PrefixCache.open(on_this_node(recipe, second))

    def test_a_limit_holds_at_the_uri_too(self, recipe: Recipe, prepared: Prepared, shared: SharedCaches) -> None:
        with pytest.raises(CacheError, match=r"must fit `cache\.max_gb`"):
            built(recipe.replace({"cache": {"max_gb": 1e-6}}), prepared)
        assert shared.storage.list() == []


class TestReading:
    def test_a_damaged_object_stops_the_run(self, recipe: Recipe, prepared: Prepared, shared: SharedCaches, nodes: Nodes) -> None:
        cache = built(recipe, prepared)
        manifest = shared.store.manifest(cache.name)
        assert manifest is not None
        shard = next(file for file in manifest.files if file.name.endswith(".safetensors"))
        shared.storage.write(f"{cache.name}/objects/{shard.sha256}", b"x" * shard.num_bytes)
        nodes.go(1)
        with pytest.raises(StorageError, match="an object must be what was published, got other bytes"):
            at_hand(recipe, cache)

    def test_a_cache_that_is_gone_is_named(self, recipe: Recipe, prepared: Prepared, shared: SharedCaches) -> None:
        cache = built(recipe, prepared)
        shared.delete(cache.name)
        with pytest.raises(CacheError, match="must be there as long as it is read, got none at"):
            at_hand(recipe, cache)

    def test_a_node_says_how_far_it_is(self, recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
        tell = Teller(recipe)
        with reporting(recipe, "prefix cache 0123") as report:
            for done in (10, 11, 55):
                report(done * 10**6, 10**8)
                tell()
        tell()
        said = capsys.readouterr().err.splitlines()
        assert [line.split(" after")[0] for line in said] == [
            f"{os.uname().nodename} fetches prefix cache 0123: {share} % of 100 MB" for share in (10, 50)
        ]
        assert not list((recipe.output / "transfers").iterdir())

    def test_without_a_uri_a_cache_is_read_where_it_is(self, recipe: Recipe, tmp_path: Path) -> None:
        alone = recipe.replace({"cache": {"uri": None}})
        assert at_hand(alone, tmp_path) == tmp_path
        assert at_hand(recipe, None) is None


class TestDeleting:
    @pytest.fixture
    def two(self, recipe: Recipe, prepared: Prepared, nodes: Nodes) -> tuple[Path, Path]:
        """Two caches; nodes 0 and 1 have a copy of the first, node 0 one of the second."""
        nodes.go(0)
        deep = recipe.replace({"adapter": {"layers": [2]}})
        first, second = built(recipe, prepared), built(deep, prepared)
        nodes.go(1)
        on_this_node(recipe, first)
        nodes.go(0)
        return first, second

    def test_a_node_drops_what_was_deleted_elsewhere_when_it_needs_a_cache(
        self, recipe: Recipe, two: tuple[Path, Path], nodes: Nodes, shared: SharedCaches
    ) -> None:
        first, second = two
        copies = [nodes.root / f"node{node}" / first.relative_to(nodes.root / "node0") for node in (0, 1)]
        assert all((copy / CACHE_FILE).is_file() for copy in copies)
        shared.delete(first.name)
        assert sweep_nodes(recipe) == (first.name,)
        assert [copy.exists() for copy in copies] == [False, True]
        [left] = copies_left(recipe)
        assert left == f"{os.uname().nodename}:{copies[1].parent}"
        nodes.go(1)
        on_this_node(recipe, second)
        assert not copies[1].exists()
        assert copies_left(recipe) == ()
        assert [entry.name for entry in shared.entries()] == [second.name]

    def test_what_an_interrupted_build_left_on_a_node_goes_too(
        self, recipe: Recipe, prepared: Prepared, shared: SharedCaches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SharedCaches, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            built(recipe, prepared)
        [entry] = shared.entries()
        assert shared.sweep() == ()
        shared.delete(entry.name)
        assert shared.sweep() == (entry.name,)
        assert not shared.folder(entry.name).exists()

    def test_caches_are_listed_and_pruned(
        self, recipe: Recipe, two: tuple[Path, Path], nodes: Nodes, shared: SharedCaches, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first, second = two
        shared.storage.write(f"{first.name}/last-used", b"1000000000")
        # by a node whose clock is ahead
        shared.storage.write(f"{second.name}/last-used", f"{time.time() + 3600:.0f}".encode())
        options = ["--output", str(recipe.output), "--cache.uri", str(recipe.cache.uri)]
        assert cache_verb.main(options) == 0
        listed = capsys.readouterr().out
        assert "found 2 prefix cache(s), " in listed
        assert f" in {recipe.cache.uri}" in listed
        assert "in order, last used 0.0 days ago" in listed
        assert cache_verb.main(["--prune", *options]) == 0
        said = capsys.readouterr()
        assert "removed 1 prefix cache(s)" in said.out
        assert f"copies of deleted caches are left on {os.uname().nodename}:" in said.err
        assert {entry.name: entry.is_deleted for entry in shared.entries()} == {first.name: True, second.name: False}
        assert (first.exists(), second.exists()) == (False, True)
        assert cache_verb.main(["--gone-nodes", os.uname().nodename, *options]) == 0
        assert [entry.name for entry in shared.entries()] == [second.name]
        assert cache_verb.main(["--prune", "--unused-days", "0", *options]) == 0
        assert shared.entries() == []
        assert not second.exists()

    def test_a_bucket_that_is_not_there_is_no_empty_one(self, recipe: Recipe, s3: object) -> None:
        with pytest.raises(StorageError, match="there is no such bucket"):
            cache_verb.main(["--output", str(recipe.output), "--cache.uri", "s3://no-such-bucket/x"])

    def test_two_places_are_kept_apart_on_a_node(self, recipe: Recipe, two: tuple[Path, Path], tmp_path: Path) -> None:
        elsewhere = SharedCaches.of(recipe.replace({"cache": {"uri": f"file://{tmp_path}/elsewhere"}}))
        assert elsewhere is not None
        assert elsewhere.sweep() == ()
        assert all(folder.exists() for folder in two)


def test_storage_is_checked_before_anything_else(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(Storage, "check", lambda self: checked.append(self.uri))
    check_storage(recipe)
    check_storage(recipe.replace({"cache": {"mode": "off"}}))
    assert checked == [recipe.cache.uri]
