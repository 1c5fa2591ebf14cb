"""The ledger in a real registry: what comes back, writers beside each other, workers after each other, and what is found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grun.config import Recipe
from grun.errors import LedgerBusyError, LedgerError, TrackingError
from grun.ledger import Ledger
from pipelines.benchmarks.servers import MLflowServer
from pipelines.ledger_store import LedgerStore
from pipelines.registry import Registry
from tests.ledger.example_ledger import STEPS, TRAINED, asked

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("an output")


@pytest.fixture
def store(output: Path, request: pytest.FixtureRequest) -> LedgerStore:
    """An empty ledger of the test's own, in a store that all tests share."""
    name = "".join(letter if letter.isalnum() else "-" for letter in str(request.node.name))[:60]
    return LedgerStore.open(Recipe.parse({"output": str(output), "ledger": {"name": name}}))


def filled(store: LedgerStore, num_entries: int = len(STEPS)) -> Ledger:
    for action, request_id, details in STEPS[:num_entries]:
        store.append(action, request_id, reason="why", details=details, by="alice@host")
    return store.read()


@pytest.fixture(scope="module")
def altered(output: Path) -> LedgerStore:
    """A ledger with every kind of entry; tests put back what they change."""
    store = LedgerStore.open(Recipe.parse({"output": str(output), "ledger": {"name": "altered"}}))
    filled(store)
    return store


def tag(store: LedgerStore, number: int) -> str:
    return str(store.tracker.client.get_model_version(store.model_name, str(number)).tags["entry"])


def set_tag(store: LedgerStore, number: int, text: str) -> None:
    store.tracker.client.set_model_version_tag(store.model_name, str(number), "entry", text)


class TestReading:
    def test_a_ledger_that_is_not_there_is_empty_and_is_not_made(self, store: LedgerStore) -> None:
        assert store.read() == Ledger()
        assert store.tracker.client.search_registered_models(f"name = '{store.model_name}'") == []

    def test_every_entry_comes_back(self, store: LedgerStore) -> None:
        written = [store.append(action, name, reason="why", details=details) for action, name, details in STEPS]
        assert store.read_stored().ledger.entries == tuple(written)
        assert store.read_stored().void == ()
        assert store.model_name not in Registry(store.tracker).names()  # it is no model that could be promoted
        assert [(entry.sequence, entry.action) for entry in written] == [(n, step[0]) for n, step in enumerate(STEPS, start=1)]

    def test_more_entries_than_a_page_holds_come_in_order(self, store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
        ledger = filled(store, 5)
        search = store.tracker.client.search_model_versions

        def paged(query: str, **options: Any) -> Any:
            return search(query, max_results=2, **options)

        monkeypatch.setattr(store.tracker.client, "search_model_versions", paged)
        assert store.read() == ledger

    def test_what_the_state_does_not_allow_writes_nothing(self, store: LedgerStore) -> None:
        filled(store, 2)
        with pytest.raises(LedgerError, match="`trained` needs a request that is training"):
            store.append("trained", "r1", details=TRAINED)
        assert len(store.read().entries) == 2
        assert len(store.tracker.client.search_model_versions(f"name = '{store.model_name}'")) == 2

    def test_details_may_be_given_as_they_are_written(self, store: LedgerStore) -> None:
        assert store.append("add", "r1", details=asked("1").model_dump(mode="json")).details == asked("1")


class TestRaces:
    def test_an_append_that_was_overtaken_finds_its_place(self, store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another writer comes in between reading and writing, once."""
        filled(store, 2)
        other = LedgerStore(store.tracker, store.model_name.removeprefix("ledger."), 60)
        create = LedgerStore._create

        def late(self: LedgerStore, entry: Any) -> None:
            if self is store:
                monkeypatch.setattr(LedgerStore, "_create", create)
                other.append("add", "faster", details=asked("8"))
            create(self, entry)

        monkeypatch.setattr(LedgerStore, "_create", late)
        entry = store.append("add", "slower", details=asked("9"))
        stored = store.read_stored()
        assert list(stored.ledger.states) == ["r1", "r2", "faster", "slower"]
        assert (entry.sequence, [void.sequence for void in stored.void]) == (4, [3])
        assert tag(store, 4) == stored.void[0].to_json()

    def test_an_append_that_is_not_allowed_any_more_is_told_so(self, store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
        create = LedgerStore._create

        def late(self: LedgerStore, entry: Any) -> None:
            monkeypatch.setattr(LedgerStore, "_create", create)
            store.append("add", "r1", by="bob@host", details=asked("8"))
            create(self, entry)

        monkeypatch.setattr(LedgerStore, "_create", late)
        with pytest.raises(LedgerError, match="got other records for 'r1', which bob@host added"):
            store.append("add", "r1", details=asked("9"))
        assert store.read().state("r1").forget == asked("8").forget

    def test_an_entry_that_was_decided_on_an_older_ledger_is_refused(self, store: LedgerStore) -> None:
        seen = filled(store, 2)
        store.append("train", "r2")
        with pytest.raises(LedgerError, match="decided on, entry 2, got a ledger of 3 entries"):
            store.append("train", "r1", seen=seen)
        assert store.append("train", "r1", seen=store.read()).sequence == 4

    def test_two_processes_lose_nothing(self, output: Path) -> None:
        """Both write as fast as they can; every entry is there once, and the chain is whole."""
        LedgerStore.open(Recipe.parse({"output": str(output)}))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        script = str(Path(__file__).with_name("ledger_writer.py"))
        writers = [
            subprocess.Popen(
                [sys.executable, script, str(output), name, "6"],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for name in "ab"
        ]  # fmt: skip
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            _out, err = writer.communicate(timeout=120)
            assert writer.returncode == 0, err
        ledger = LedgerStore.open(Recipe.parse({"output": str(output)})).read()
        assert sorted(ledger.states) == [f"{name}{number}" for name in "ab" for number in range(6)]
        assert [entry.sequence for entry in ledger.entries] == list(range(1, 13))


class TestLeases:
    def test_one_worker_at_a_time(self, store: LedgerStore) -> None:
        with store.hold("alice") as lease:
            store.append("add", "r1", details=asked("1"), lease=lease)
            with pytest.raises(
                LedgerBusyError, match=r"one worker at a time .*'bob' while 'alice' holds its lock until .*; wait"
            ):
                store.hold("bob").__enter__()
        assert store.read().fence == 1
        with store.hold("bob") as lease:
            assert lease.number == 2

    def test_a_promotion_lock_of_the_same_name_says_promotion(self, store: LedgerStore) -> None:
        from pipelines.lease import hold_lease

        with pytest.raises(LedgerBusyError), hold_lease(store.tracker.store, store.model_name, "alice", 60):
            store.hold("bob").__enter__()

    def test_a_worker_that_was_taken_over_writes_nothing(self, store: LedgerStore) -> None:
        filled(store, 2)
        short = LedgerStore(store.tracker, store.model_name.removeprefix("ledger."), 0)
        with short.hold("slow") as lost, store.hold("quick") as lease:
            assert lease.number == lost.number + 1
            with pytest.raises(LedgerError, match=r"working through ledger.* needs its ledger lock, got one that 'slow' lost"):
                short.append("train", "r1", lease=lost)
            store.append("train", "r1", lease=lease)
        assert [entry.fence for entry in store.read().entries] == [0, 0, 2]

    def test_a_worker_that_did_not_notice_is_fenced(self, store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """It looked at its lease, slept while it was taken over, and writes when it wakes up."""
        filled(store, 2)
        short = LedgerStore(store.tracker, store.model_name.removeprefix("ledger."), 0)
        with short.hold("slow") as lost, store.hold("quick") as lease:
            store.append("train", "r1", lease=lease)
            monkeypatch.setattr("pipelines.ledger_store.check_lease", lambda *_args, **_options: None)
            with pytest.raises(LedgerError, match="under lease 1 while lease 2 has written; another worker took over"):
                short.append("train", "r1", lease=lost)
        assert len(store.read().entries) == 3

    def test_a_worker_that_writes_in_the_very_moment_is_void(self, store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """It read the ledger too, and its entry arrives after the first one of its successor."""
        filled(store, 2)
        short = LedgerStore(store.tracker, store.model_name.removeprefix("ledger."), 0)
        create = LedgerStore._create
        with short.hold("slow") as lost, store.hold("quick") as lease:

            def late(self: LedgerStore, entry: Any) -> None:
                monkeypatch.setattr(LedgerStore, "_create", create)
                store.append("train", "r1", lease=lease)
                create(self, entry)

            monkeypatch.setattr("pipelines.ledger_store.check_lease", lambda *_args, **_options: None)
            monkeypatch.setattr(LedgerStore, "_create", late)
            with pytest.raises(LedgerError, match="another worker took over"):
                short.append("train", "r1", lease=lost)
        stored = store.read_stored()
        assert ([entry.fence for entry in stored.ledger.entries], [void.fence for void in stored.void]) == ([0, 0, 2], [1])


class TestTampering:
    def test_a_change_of_any_entry_is_found(self, altered: LedgerStore) -> None:
        for number in range(1, len(STEPS) + 1):
            text = tag(altered, number)
            set_tag(altered, number, text.replace('"reason":"why"', '"reason":"because"'))
            with pytest.raises(LedgerError, match=rf"got entry {number} \(.*`digest` does not fit"):
                altered.read()
            set_tag(altered, number, text)
        assert len(altered.read().entries) == len(STEPS)

    def test_a_missing_tag_is_found(self, altered: LedgerStore) -> None:
        text = tag(altered, 2)
        altered.tracker.client.delete_model_version_tag(altered.model_name, "2", "entry")
        with pytest.raises(LedgerError, match=r"something else in version 2 of ledger\."):
            altered.read()
        set_tag(altered, 2, text)

    def test_entries_that_changed_places_are_found(self, altered: LedgerStore) -> None:
        first, second = tag(altered, 2), tag(altered, 3)
        set_tag(altered, 2, second)
        set_tag(altered, 3, first)
        with pytest.raises(LedgerError, match="`sequence` must be 2 here"):
            altered.read()
        set_tag(altered, 2, first)
        set_tag(altered, 3, second)

    def test_nothing_is_appended_to_a_ledger_that_was_altered(self, altered: LedgerStore) -> None:
        text = tag(altered, 1)
        set_tag(altered, 1, text.replace("why", "who"))
        with pytest.raises(LedgerError, match="entry 1 "):
            altered.append("revoked", "r2")
        set_tag(altered, 1, text)
        assert len(altered.read().entries) == len(STEPS)

    @pytest.mark.parametrize("number", [1, 2])
    def test_a_deleted_entry_is_found(self, store: LedgerStore, number: int) -> None:
        filled(store, 3)
        store.tracker.client.delete_model_version(store.model_name, str(number))
        with pytest.raises(LedgerError, match=rf"without a gap, got {number + 1} where {number} should be"):
            store.read()

    def test_an_entry_that_somebody_put_in_is_found(self, store: LedgerStore) -> None:
        filled(store, 3)
        values = json.loads(tag(store, 3))
        forged = json.dumps(values | {"sequence": 4, "action": "failed"}, sort_keys=True, separators=(",", ":"))
        client = store.tracker.client
        client.create_model_version(store.model_name, "runs:/x/ledger", tags={"entry": forged})
        with pytest.raises(LedgerError, match=r"entry 4 \(`failed` of 'r1'\)"):
            store.read()


@pytest.mark.slow
def test_a_server_keeps_a_ledger_as_a_database_does(tmp_path: Path) -> None:
    with MLflowServer(tmp_path / "server").running() as server:
        recipe = Recipe.parse({"output": str(tmp_path / "output"), "tracking": {"uri": server.url, "patience_seconds": 0}})
        store = LedgerStore.open(recipe)
        ledger = filled(store)
        assert LedgerStore.open(recipe).read() == ledger
        with store.hold("alice") as lease:
            store.append("revoked", "r1", lease=lease)
            with pytest.raises(LedgerBusyError):
                store.hold("bob").__enter__()
        set_tag(store, 3, tag(store, 3).replace("alice", "mallory"))
        with pytest.raises(LedgerError, match="entry 3 "):
            store.read()
    with pytest.raises(TrackingError, match="read the ledger"):
        store.read()
