"""The verb `request`: what it adds, and what it refuses with one clear message."""

import importlib
import json
import shlex
import shutil
from pathlib import Path

import pytest

from grun.config import Recipe
from grun.data.records import QARecord, digest_records, read_jsonl
from grun.errors import TrackingError
from pipelines import request
from pipelines.ledger_store import LedgerStore
from pipelines.vault import Vault
from tests.pipelines.requests.desk import SECRET, Verb, files, records, store_of, write_records

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


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

    def test_what_was_purged_cannot_be_reinstated_without_an_adapter(self, add: Verb, run: Verb) -> None:
        add("r1")
        run("revoke", "r1", "--reason", "withdrawn")
        assert run("purge", "r1").status == 0
        assert add("r1").message.endswith("which is revoked; its text was purged: add it under another id")

    def test_a_copy_that_was_lost_is_put_back(self, add: Verb, run: Verb, output: Path) -> None:
        add("r1")
        entries = store_of(output).read().entries
        folder = output / "vault" / "demo" / "r1"
        shutil.rmtree(folder)
        assert "0 in the vault are what was asked to be forgotten, 1 are not there (r1), " in run("verify").out
        again = add("r1")
        assert (again.status, again.out.splitlines()[0].strip()) == (0, "request r1 was added already")
        assert "its text was not in the vault, and is again" in again.err
        assert read_jsonl(folder / "forget.jsonl") == records("r1")
        assert store_of(output).read().entries == entries

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
