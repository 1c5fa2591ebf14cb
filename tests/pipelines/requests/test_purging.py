"""The verb `request`: after its purge a request's text is nowhere, and the proof stays."""

import json
from pathlib import Path
from typing import Any

import pytest

from grun.config import Recipe, RequestConfig
from grun.data.records import Record, read_jsonl
from grun.data.splits import Splits, make_request
from grun.errors import TrackingError
from pipelines.cache_locks import building, reading
from pipelines.caching import RECORDS_FILE
from pipelines.ledger_store import LedgerStore
from pipelines.prepared import Prepared, write_prepared
from pipelines.shared_caches import SharedCaches
from pipelines.vault import Vault
from tests.pipelines.requests.desk import SECRET, Verb, files, records, store_of, write_records

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def prepare(output: Path, name: str, forget: tuple[Record, ...], retain: tuple[Record, ...]) -> Path:
    """A prepared folder of a request."""
    splits = Splits(forget, retain, records(f"held out of {name}"))
    made = make_request(RequestConfig(id=name), Recipe().data, splits)
    folder = output / "prepared" / f"{name}-0123456789ab"
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_prepared(Prepared(folder, made, splits, base="tiny", retain_only=None))
    return folder


def cache(output: Path, name: str, rows: tuple[Record, ...] | None) -> Path:
    """Something like a prefix cache, with a note of the records that it was made from, or without."""
    folder = output / "cache" / name
    folder.mkdir(parents=True)
    (folder / "shard-00000.safetensors").write_bytes(b"keys and values")
    if rows is not None:
        (folder / RECORDS_FILE).write_text(json.dumps([row.digest for row in rows]))
    return folder


class TestPurge:
    def test_the_text_is_nowhere_afterwards_and_the_proof_stays(self, add: Verb, run: Verb, output: Path) -> None:
        add("r1")
        add("r2")
        before = store_of(output).read()
        store_of(output).append("revoked", "r1")
        gone = [
            prepare(output, "r1", records("r1"), records("kept")),
            prepare(output, "r2", records("r2"), (*records("kept"), records("r1")[0])),
            cache(output, "has-it", (*records("kept"), records("r1")[1])),
            cache(output, "unknown", None),
            (left := output / "vault" / "demo" / ".r1.partial-1"),
        ]
        write_records(left / "forget.jsonl", records("r1"))  # by an `add` that was killed
        stays = [prepare(output, "r3", records("r3"), records("kept")), cache(output, "has-not", records("r2"))]
        ended = run("purge", "r1")
        assert ended.status == 0, ended.err
        assert [path.name for path in gone if path.exists()] == []
        assert [path.name for path in stays if not path.exists()] == []
        assert b"r1 " + SECRET.encode() not in b"".join(content for _name, content in files(output))
        ledger = store_of(output).read()
        ledger.check_continues(before)
        assert (ledger.entries[-1].action, ledger.state("r1").purged, ledger.state("r2").purged) == ("purged", True, False)
        assert "1 in the vault are what was asked to be forgotten, 0 are not there, 1 were purged" in run("verify").out

    def test_shared_caches_go_too_and_nodes_that_have_copies_are_named(
        self, add: Verb, run: Verb, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        place = f"file://{tmp_path}/shared"
        found = {"output": str(output), "cache": {"uri": place, "local": str(tmp_path / "here")}}
        here, other = (
            SharedCaches.of(Recipe.parse({**found, "cache": {"uri": place, "local": str(tmp_path / name)}}))
            for name in ("here", "other")
        )
        assert here is not None
        assert other is not None
        add("r1")
        store_of(output).append("revoked", "r1")
        for name, rows in (("has-it", (*records("kept"), records("r1")[1])), ("has-not", records("r2"))):
            for shared in (here, other):
                shared.begin(name, [row.digest for row in rows])
                (shared.enter(name) / "shard-00000.safetensors").write_bytes(b"keys and values")
            here.store.publish(here.folder(name), name)
        here.storage.write("unknown/objects/0", b"left by somebody")
        ended = run("purge", "r1", "--cache.uri", place, "--cache.local", tmp_path / "here")
        assert ended.status == 0, ended.err
        assert "has-it, unknown" in ended.out
        assert f"copies of deleted caches are left on 1 node(s) that cannot be reached from here, {here.node}:" in ended.err
        assert (here.folder("has-it").exists(), other.folder("has-it").exists()) == (False, True)
        assert here.folder("has-not").exists()
        assert {entry.name: entry.is_deleted for entry in here.entries()} == {"has-it": True, "has-not": False}
        other.fetch("has-not")
        assert not other.folder("has-it").exists()
        assert "left: none" in run("purge", "r1", "--cache.uri", place, "--cache.local", tmp_path / "here").out

    def test_nothing_is_deleted_where_the_shared_caches_cannot_be_looked_at(self, add: Verb, run: Verb, output: Path) -> None:
        add("r1")
        store_of(output).append("revoked", "r1")
        held = cache(output, "has-it", records("r1"))
        assert "got 'file:///proc/none': could not write" in run("purge", "r1", "--cache.uri", "file:///proc/none").message
        assert held.exists()
        assert (output / "vault" / "demo" / "r1").exists()

    def test_given_again_it_deletes_what_has_come_back_and_writes_nothing(self, add: Verb, run: Verb, output: Path) -> None:
        add("r1")
        store_of(output).append("revoked", "r1")
        run("purge", "r1")
        entries = store_of(output).read().entries
        back = prepare(output, "r1", records("r1"), records("kept"))
        held = cache(output, "has-it", records("r1"))
        assert "none, it was recorded before" in run("purge", "r1").out
        assert not back.exists()
        assert not held.exists()
        assert store_of(output).read().entries == entries

    def test_interrupted_anywhere_the_same_command_finishes_it(
        self, add: Verb, run: Verb, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add("r1")
        store_of(output).append("revoked", "r1")
        prepare(output, "r1", records("r1"), records("kept"))
        for target, name in ((Vault, "remove"), (LedgerStore, "append")):
            with monkeypatch.context() as broken:

                def away(*_args: Any, **_options: Any) -> None:
                    raise TrackingError("interrupted")

                broken.setattr(target, name, away)
                assert "interrupted" in run("purge", "r1").message
            assert not store_of(output).read().state("r1").purged
        assert run("purge", "r1").status == 0
        assert store_of(output).read().state("r1").purged

    def test_a_request_in_training_keeps_its_text(self, add: Verb, run: Verb, output: Path) -> None:
        add("r1")
        store_of(output).append("train", "r1")
        assert "got 'r1', which is training" in run("purge", "r1").message
        assert read_jsonl(output / "vault" / "demo" / "r1" / "forget.jsonl") == records("r1")

    def test_nothing_is_deleted_while_somebody_works(self, add: Verb, run: Verb, output: Path) -> None:
        add("r1")
        store = store_of(output)
        store.append("revoked", "r1")
        with store.hold("alice"):
            assert "while 'alice' holds its lock" in run("purge", "r1").message
        held = cache(output, "has-it", records("r1"))
        other = cache(output, "a-first-one", records("r1"))
        for holding, how in ((building, "built"), (reading, "read")):
            with holding(held):
                assert f"got has-it, made from the text to be purged, which is being {how}; " in run("purge", "r1").message
        assert held.exists()
        assert other.exists()
        assert (output / "vault" / "demo" / "r1").exists()
        assert not store.read().state("r1").purged
