"""The verb `request`: what it lists, shows and verifies."""

import shutil
from pathlib import Path

import pytest

from grun.adapters import AdapterCard, digest_adapter, digest_stack, save_adapter, save_stack
from grun.config import AdapterConfig, LinearGateConfig, Recipe, SumConfig
from grun.interventions import build_adapter
from grun.lm import BaseInfo
from pipelines import request
from pipelines.ledger_store import LedgerStore
from pipelines.registry import Registry
from tests.ledger.example_ledger import TRAINED
from tests.pipelines.requests.desk import Verb, records, store_of, write_records

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


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
        assert "got texts of 'r2' in " in run("verify").message
        shutil.rmtree(output / "vault" / "demo" / "r2")
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

    def test_texts_that_a_ledger_does_not_know_are_found(self, add: Verb, run: Verb, tmp_path: Path) -> None:
        """As where the store was replaced by an empty one: an empty chain is whole."""
        add("r1")
        empty = ("--tracking.uri", f"sqlite:///{tmp_path}/empty.db")
        found = "got texts of 'r1' in "
        assert found in run("verify", *empty).message
        listed = run("list", *empty)
        assert (listed.status, found in listed.err) == (0, True)
        assert add("r1", *empty).status == 0
        assert run("verify", *empty).status == 0


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
