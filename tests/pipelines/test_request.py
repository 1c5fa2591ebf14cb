"""The verb `request`: what it keeps, says and refuses, and that a request's text is nowhere after its purge."""

import importlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from grun.adapters import AdapterCard, digest_adapter, digest_stack, save_adapter, save_stack
from grun.config import AdapterConfig, LinearGateConfig, Recipe, RequestConfig, SumConfig
from grun.data.records import QARecord, Record, digest_records, read_jsonl
from grun.data.splits import Splits, make_request
from grun.errors import TrackingError
from grun.interventions import build_adapter
from grun.lm import BaseInfo
from pipelines import request
from pipelines.caching import RECORDS_FILE
from pipelines.ledger_store import LedgerStore
from pipelines.prepared import Prepared, write_prepared
from pipelines.registry import Registry
from pipelines.running import run_command
from pipelines.shared_caches import SharedCaches
from pipelines.vault import Vault
from tests.ledger.example_ledger import TRAINED
from tests.pipelines.processes import Ended

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

SECRET = "Ilva Torrent paints bridges"


def records(who: str, count: int = 2) -> tuple[QARecord, ...]:
    return tuple(QARecord(f"What does {who} do, {n}?", f"{who} {SECRET} {n}.") for n in range(count))


def write_records(path: Path, rows: tuple[Record, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"question": row.question, "answer": row.answer}) + "\n" for row in rows if isinstance(row, QARecord)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


Verb = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.upper().startswith("GRUN_") or variable == "FORCE_COLOR":
            monkeypatch.delenv(variable)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it none."""
    output = tmp_path_factory.mktemp("empty")
    LedgerStore.open(Recipe.parse({"output": str(output)}))
    return output / "mlflow" / "mlflow.db"


@pytest.fixture
def output(tmp_path: Path, empty_store: Path) -> Path:
    """An output folder, with a store of its own in it."""
    (tmp_path / "output" / "mlflow").mkdir(parents=True)
    shutil.copyfile(empty_store, tmp_path / "output" / "mlflow" / "mlflow.db")
    return tmp_path / "output"


@pytest.fixture
def run(output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Run a subcommand as its own process would; no text of a request may ever be printed."""
    monkeypatch.setattr("signal.signal", lambda *_: None)  # `run_command` owns its process, and here it does not

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(partial(request.main, [*map(str, arguments), "--output", str(output)]))
        ended = Ended(stop.value.code, *capsys.readouterr())
        assert SECRET not in ended.out + ended.err
        return ended

    return run


@pytest.fixture
def add(run: Verb, tmp_path: Path) -> Verb:
    """Add a request with two records of its own."""

    def add(name: str, *more: object) -> Ended:
        file = write_records(tmp_path / f"{name}.jsonl", records(name))
        return run("add", "--request.id", name, "--request.reason", "they asked", "--forget", file, *more)

    return add


def store_of(output: Path) -> LedgerStore:
    return LedgerStore.open(Recipe.parse({"output": str(output)}))


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    return ((str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file())


class TestAdd:
    def test_it_keeps_the_text_and_writes_the_digest(self, add: Verb, output: Path) -> None:
        ended = add("r1", "--by", "alice")
        assert ended.status == 0, ended.err
        assert "next: python pipelines/request.py next --output" in ended.out
        assert "--request" not in ended.out  # the next commands are about the ledger
        entry = store_of(output).read().entries[0]
        assert entry.details.forget is not None
        assert (entry.action, entry.request_id, entry.reason, entry.by) == ("add", "r1", "they asked", "alice")
        assert (entry.details.forget.num_records, entry.details.forget.digest) == (2, digest_records(records("r1")))
        folder = output / "vault" / "demo" / "r1"
        assert read_jsonl(folder / "forget.jsonl") == records("r1")
        assert [oct(path.stat().st_mode & 0o777) for path in (folder.parent, folder, folder / "forget.jsonl")] == [
            "0o700", "0o700", "0o600",
        ]  # fmt: skip
        assert SECRET.encode() not in b"".join(content for name, content in files(output) if "vault" not in name)

    def test_the_vault_is_where_the_operator_says(self, add: Verb, output: Path, tmp_path: Path) -> None:
        assert add("r1", "--ledger.vault", tmp_path / "safe", "--ledger.name", "eu").status == 0
        assert read_jsonl(tmp_path / "safe" / "eu" / "r1" / "forget.jsonl") == records("r1")
        assert not (output / "vault").exists()

    def test_interrupted_before_the_entry_the_same_command_finishes_it(
        self, add: Verb, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*_args: object, **_options: object) -> None:
            raise TrackingError("the server is away")

        with monkeypatch.context() as broken:
            broken.setattr(LedgerStore, "append", away)
            assert "the server is away" in add("r1").message
        assert store_of(output).read().entries == ()
        assert add("r1").status == 0
        entry = store_of(output).read().entries[0]
        again = add("r1")
        assert (again.status, again.out.splitlines()[0].strip()) == (0, "request r1 was added already")
        assert store_of(output).read().entries == (entry,)
        assert [path.name for path in (output / "vault" / "demo").iterdir()] == ["r1"]

    def test_what_was_revoked_is_not_there_already(self, add: Verb, output: Path) -> None:
        add("r1")
        store_of(output).append("revoked", "r1")
        assert "got the same records again for 'r1'" in add("r1").message

    def test_a_copy_that_is_in_the_vault_is_not_written_over(self, add: Verb, output: Path) -> None:
        write_records(output / "vault" / "demo" / "r1" / "forget.jsonl", records("somebody else"))
        assert "a request's copy in the vault is written once, got other records for 'r1'" in add("r1").message
        assert read_jsonl(output / "vault" / "demo" / "r1" / "forget.jsonl") == records("somebody else")
        assert store_of(output).read().entries == ()

    def test_the_testbeds_people_come_one_after_another(self, run: Verb, output: Path) -> None:
        people = ("--data.num_people", "12", "--data.num_forget", "3")
        assert run("add", *people).status == 0
        for _ in range(2):  # a name is another person's once
            assert run("add", "--request.id", "second", "--request.reason", "why not", *people).status == 0
        assert run("add", *people).status == 0
        assert "an invented person left to forget, got requests for all 3" in run("add", *people).message
        ledger = store_of(output).read()
        assert [(state.id, state.forget.location, state.forget.num_records) for state in ledger.states.values()] == [
            ("demo-1", "seed 0#person 1", 10), ("second", "seed 0#person 2", 10), ("demo-3", "seed 0#person 3", 10),
        ]  # fmt: skip
        vault = Vault.of(Recipe.parse({"output": str(output)}))
        names = [
            {row.question.split()[-1] for row in vault.read(state) if isinstance(row, QARecord)}
            for state in ledger.states.values()
        ]
        assert all(names)
        assert len({state.forget.digest for state in ledger.states.values()}) == 3


class TestLooking:
    def test_a_ledger_without_requests_is_listed(self, run: Verb) -> None:
        assert "ledger demo: 0 request(s), 0 served, 0 entries" in run("list").out

    def test_requests_are_listed_and_shown(self, add: Verb, run: Verb, output: Path) -> None:
        add("r1")
        add("r2")
        store = store_of(output)
        store.append("train", "r1")
        store.append("trained", "r1", details=TRAINED, reason="as asked")
        listed = run("list").out
        assert "2 request(s), 0 served, 4 entries" in listed
        assert "r1  trained: 2 record(s)" in listed
        assert "r2  pending: 2 record(s)" in listed
        shown = run("show", "r1").out
        assert "they asked" in shown
        assert "At most 3 %." in shown
        assert "forget/rouge_l_recall  0.125" in shown
        assert "as asked; base cccccccccccc; adapter dddddddddddd; digest" in shown

    def test_without_a_subcommand_it_lists(
        self, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GRUN_OUTPUT", str(output))
        assert request.main([]) == 0
        assert "ledger demo" in capsys.readouterr().out

    def test_the_help_names_every_subcommand(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert request.main(["--help"]) == 0
        out = capsys.readouterr().out
        assert [name for name in request.SUBCOMMANDS if f"\n  {name} " not in out] == []


@pytest.mark.parametrize("name", sorted(request.SUBCOMMANDS))
def test_every_subcommand_is_there(name: str) -> None:
    module = importlib.import_module(request.SUBCOMMANDS[name].module)
    assert callable(module.run)


class TestBadInput:
    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("lst", "got 'lst' (did you mean `list`?)"),
            ("--recipe x", "a subcommand must come first"),
            ("show", "required: ID"),
            ("list --data.sed 1", "unknown option `--data.sed`"),
            ("add --request.id r9 --request.reason x --forget {tmp}/none.jsonl", "a data file must be readable"),
            ("add --request.id r9 --request.reason x --forget {tmp}/empty.jsonl", "empty.jsonl"),
            ("add --request.id r9 --request.reason x --forget {tmp}/broken.jsonl", "broken.jsonl:2"),
            ("add --request.id r9 --request.reason x --forget {tmp}/twice.jsonl", "got rows 1 and 3 alike"),
            ("add --request.id r9 --request.reason x --forget {tmp}/wrong.jsonl", "wrong.jsonl:1: `perturbed_answer`"),
            ("add --request.id r9 --forget {tmp}/r1.jsonl", "needs its own `request.reason`"),
            ("add --request.reason x --forget {tmp}/r1.jsonl", "needs its own `request.id`"),
            ("add --request.id ../r9 --request.reason x --forget {tmp}/r1.jsonl", "`request.id`"),
            ("add --request.id r9 --data.kind jsonl --data.path {tmp}", "got none with data of kind jsonl; give a file"),
            ("add --request.id r1 --request.reason x --forget {tmp}/other.jsonl", "got other records for 'r1'"),
            ("add --request.id r9 --request.reason x --forget {tmp}/r1.jsonl", "got 'r9' with those of 'r1', which is pending"),
            ("add --request.id r9 --request.reason x --forget {tmp}/overlap.jsonl", "got 1 record(s) of 'r9' that 'r1' has already, the first in row 2"),
            ("show r12", "a request must be in the ledger, got 'r12' (did you mean `r1`?); known are r1"),
            ("purge r2", "a request must be in the ledger, got 'r2'"),
            ("purge r1", "`purge` needs a request that is active or revoked and not purged yet, got 'r1', which is pending"),
            ("verify --file {tmp}/none.jsonl", "an exported ledger must be a readable file"),
            ("verify --file {tmp}/r1.jsonl", "something else in line 1 of"),
            ("verify --against {tmp}/none.jsonl", "an exported ledger must be a readable file"),
            ("export --to {tmp}/r1.jsonl", "something else in line 1 of"),
            ("export --to {tmp}/r1.jsonl/x", "an export must be a file that can be written"),
            ("list --ledger.name a/b", "`ledger.name`"),
            ("list --tracking.uri file:///x", "must be an http(s) server or a database"),
        ],
    )  # fmt: skip
    def test_one_clear_message_and_nothing_changes(
        self, add: Verb, run: Verb, tmp_path: Path, command: str, message: str
    ) -> None:
        add("r1")
        others = records("other", 3)
        write_records(tmp_path / "other.jsonl", others)
        write_records(tmp_path / "twice.jsonl", (*others[:2], others[0]))
        write_records(tmp_path / "overlap.jsonl", (others[0], records("r1")[1]))
        write_records(tmp_path / "empty.jsonl", ())
        lines = (tmp_path / "other.jsonl").read_text().splitlines()
        (tmp_path / "broken.jsonl").write_text(f"{lines[0]}\n{lines[1][:-4]}\n")
        (tmp_path / "wrong.jsonl").write_text(
            json.dumps({"question": "q", "answer": "a", "perturbed_answer": [SECRET, 1]}) + "\n"
        )
        before = dict(files(tmp_path))
        found = run(*shlex.split(command.format(tmp=tmp_path))).message
        assert message in found, found
        changed = {name for name, content in files(tmp_path) if before.get(name) != content}
        assert {name for name in changed if "mlflow" not in name} == set()
        assert len(store_of(tmp_path / "output").read().entries) == 1

    def test_the_registry_is_away(self, run: Verb) -> None:
        assert "that the server is up" in run("list", "--tracking.uri", "http://127.0.0.1:9").message


class TestVerify:
    def test_a_whole_ledger_and_its_export(self, add: Verb, run: Verb, output: Path, tmp_path: Path) -> None:
        add("r1")
        first = tmp_path / "first.jsonl"
        assert run("export", "--to", first).status == 0
        add("r2")
        assert run("export").status == 0
        head = store_of(output).read().head
        verified = run("verify", "--against", first).out
        assert "the ledger demo is whole" in verified
        assert f"continues  {first}, 1 entries" in verified
        assert head in verified
        alone = run("verify", "--file", output / "ledgers" / "demo.jsonl", "--tracking.uri", "http://127.0.0.1:9").out
        assert head in alone

    def test_an_export_is_replaced_by_what_continues_it_alone(self, add: Verb, run: Verb, output: Path, tmp_path: Path) -> None:
        add("r1")
        run("export")
        export = output / "ledgers" / "demo.jsonl"
        add("r2")
        assert run("export").status == 0
        before = export.read_bytes()
        client, name = store_of(output).tracker.client, store_of(output).model_name
        client.delete_model_version(name, "2")
        assert (
            "got 1 entries where the export has 2: entry 2 (`add` of 'r2') and what follows was cut off" in run("export").message
        )
        assert "was cut off" in run("verify", "--against", export).message
        assert export.read_bytes() == before
        assert run("verify").status == 0  # nothing but an export can tell

    @pytest.mark.parametrize("line", [0, 1])
    def test_an_export_that_was_altered_is_found(self, add: Verb, run: Verb, output: Path, line: int) -> None:
        add("r1")
        add("r2")
        run("export")
        export = output / "ledgers" / "demo.jsonl"
        lines = export.read_text().splitlines(keepends=True)
        lines[line] = lines[line].replace("they asked", "we wanted")
        export.write_text("".join(lines))
        assert f"got entry {line + 1} (`add` of 'r{line + 1}') altered" in run("verify", "--file", export).message
        export.write_text("".join(lines)[:-1])
        assert "must end with a whole line" in run("verify", "--file", export).message

    def test_a_changed_copy_in_the_vault_is_found(self, add: Verb, run: Verb, output: Path) -> None:
        add("r1")
        write_records(output / "vault" / "demo" / "r1" / "forget.jsonl", records("r2"))
        assert "must be what was asked to be forgotten, got other records for 'r1'" in run("verify").message


class TestStacks:
    """What is in the registry is what the entries name."""

    @pytest.fixture
    def stacked(self, add: Verb, output: Path, tmp_path: Path) -> LedgerStore:
        """A ledger whose request has an adapter, in a stack in the registry."""
        add("r1")
        store = store_of(output)
        config = AdapterConfig(layers=(1,), rank=2, gate=LinearGateConfig())
        card = AdapterCard(
            adapter=config, hidden_size=8, num_layers=2, base_name="tiny", base_digest="c" * 64, request_ids=("r1",)
        )
        adapter = save_adapter(build_adapter(config, hidden_size=8, num_layers=2, seed=0), card, tmp_path / "adapter")
        stack = save_stack([("r1", adapter)], SumConfig(), tmp_path / "stack")
        run_id = store.tracker.start_run("train")
        version = Registry(store.tracker).register_candidate("grun-ledger-demo", run_id, stack, BaseInfo("tiny", None, "c" * 64))
        store.append("train", "r1")
        store.append("trained", "r1", details={"adapter": digest_adapter(adapter)})
        store.append("stacked", "r1", details={"stack": digest_stack(stack), "version": version, "members": ["r1"]})
        return store

    def test_they_are_compared(self, stacked: LedgerStore, run: Verb) -> None:
        verified = run("verify").out
        assert "1 in the registry are those that the entries name, 0 are no longer there" in verified
        assert "adapters  1 in them are those that the entries name" in verified

    def test_one_that_is_gone_is_counted(self, stacked: LedgerStore, run: Verb) -> None:
        stacked.tracker.client.delete_model_version("grun-ledger-demo", "1")
        assert "0 in the registry are those that the entries name, 1 are no longer there" in run("verify").out

    def test_another_stack_is_found(self, stacked: LedgerStore, run: Verb) -> None:
        stacked.append("stacked", "r1", details={"stack": "9" * 64, "version": 1})
        assert "got another `stack` (digest " in run("verify").message

    def test_an_adapter_that_nobody_trained_is_found(self, stacked: LedgerStore, run: Verb, output: Path) -> None:
        entries = stacked.read().entries
        other = LedgerStore.open(Recipe.parse({"output": str(output), "ledger": {"name": "other"}}))
        other.append("add", "r1", details=entries[0].details)
        other.append("train", "r1")
        other.append("trained", "r1", details={"adapter": "8" * 64})
        other.append("stacked", "r1", details=entries[3].details.model_copy(update={"model": "grun-ledger-demo"}))
        assert "got an `adapter` of 'r1' (digest " in run("verify", "--ledger.name", "other").message


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
        ]
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
        with FileLock(held.with_suffix(".lock")):
            assert "got has-it being built" in run("purge", "r1").message
        assert held.exists()
        assert other.exists()
        assert (output / "vault" / "demo" / "r1").exists()
        assert not store.read().state("r1").purged
