"""Requests in sequence on a real MLflow store, with adapters made by hand: what is stacked, judged, promoted, revoked, continued.

Tasks run in this process, not on a cluster; training has tests of its own.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from grun.adapters import digest_stack, read_stack_card
from grun.config import Recipe
from grun.data.records import read_jsonl
from grun.data.sequence import without
from grun.errors import (
    AdapterError,
    CacheError,
    ConfigError,
    DataError,
    DiskError,
    GrunError,
    LedgerBusyError,
    LedgerError,
    OutageError,
    StorageError,
    TrainingError,
)
from grun.evaluation.stack_report import StackReport
from grun.lm import FrozenLM, load_frozen_lm
from pipelines.last_word import forget_error, read_error, write_error
from pipelines.ledger_store import LedgerStore
from pipelines.registry import Registry
from pipelines.sequencing import commands, judging, promoting, training
from pipelines.sequencing.commands import open_work
from pipelines.sequencing.course import course_of
from pipelines.sequencing.data import asked_for, common_rows, request_prepared
from pipelines.sequencing.judging import StackSets
from pipelines.sequencing.promoting import serve_stack
from pipelines.sequencing.stacking import stack_version
from pipelines.sequencing.training import next_request
from pipelines.sequencing.work import Work
from pipelines.tasks import HelperTask
from pipelines.train import run_folder
from tests.pipelines.ledger_desk import Desk

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def lm(base_folder: Path) -> FrozenLM:
    return load_frozen_lm(str(base_folder))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all ledgers of this file: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture(scope="module", autouse=True)
def _in_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    progress = tmp_path_factory.mktemp("progress") / "progress"

    def inline(_recipe: Recipe, tasks: Sequence[HelperTask], **_options: object) -> list[Any]:
        return [task.function(**task.arguments, progress=progress) for task in tasks]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promoting, "run_tasks", inline)
        patch.setattr(commands, "connected", lambda _recipe: nullcontext())
        patch.setattr(commands, "check_resources", lambda _recipe: None)
        # a random base has no utility that could be kept: what is tested here is who acts on the numbers
        patch.setattr(judging, "utility_ratio", lambda *_: 1.0)
        yield


@pytest.fixture(scope="module")
def make_desk(make_recipe: Callable[..., Recipe], data_folder: Path, lm: FrozenLM, store: str) -> Callable[[Path], Desk]:
    """Makes a ledger in a folder, named like it."""

    def make(folder: Path) -> Desk:
        recipe = make_recipe(output=str(folder / "outputs"), tracking={"uri": store}, ledger={"name": folder.name})
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
        return Desk(recipe, path, lm, data_folder)

    return make


@pytest.fixture
def desk(make_desk: Callable[[Path], Desk], tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


def with_two_served(desk: Desk) -> Desk:
    for number, request_id in enumerate(("r1", "r2")):
        desk.add(request_id, 3 * number, 3 * number + 3)
        desk.train(request_id)
        assert desk.run("next") == 0
    return desk


@pytest.fixture
def served(desk: Desk) -> Desk:
    """Two requests, both served."""
    return with_two_served(desk)


@pytest.fixture(scope="module")
def untouched(make_desk: Callable[[Path], Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The same, for tests that change nothing."""
    return with_two_served(make_desk(tmp_path_factory.mktemp("untouched")))


def test_a_request_trains_on_everything_but_itself_whatever_others_ask(desk: Desk) -> None:
    desk.add("r1", 0, 3)
    desk.add("r2", 3, 6)
    with open_work(desk.recipe) as work:
        ledger, records = work.ledger, asked_for(work.recipe, work.ledger)
        alone = request_prepared(work.recipe, work.shared, ledger.state("r1"), {"r1": records["r1"]})
        among = request_prepared(work.recipe, work.shared, ledger.state("r1"), records)
        assert among == alone, "so neither its folder nor its cache nor its training depend on them"
        assert set(records["r2"]) <= set(among.splits.retain)
        assert among.request.data_digests["forget"] == ledger.state("r1").forget.digest
        assert among.base == work.shared.base
        other = request_prepared(work.recipe, work.shared, ledger.state("r2"), records)
        same_id = replace(ledger.state("r2"), id="r1")
        elsewhere = request_prepared(work.recipe, work.shared, same_id, {"r1": records["r2"]})
        assert len({prepared.folder for prepared in (among, other, elsewhere)}) == 3, "of another ledger, too"
        common = common_rows(work.shared).splits
        assert {*among.splits.forget, *among.splits.retain} == set(common.retain)


def test_records_are_those_of_requests_that_are_open(desk: Desk) -> None:
    desk.add("r1", 0, 3)
    desk.add("r2", 3, 6)
    assert desk.run("revoke", "r1", "--reason", "withdrawn") == 0
    ledger = desk.ledger()
    assert set(asked_for(desk.recipe, ledger)) == {"r2"}
    assert set(asked_for(desk.recipe, ledger, also=["r1"])) == {"r1", "r2"}
    assert set(asked_for(desk.recipe, ledger, at=1)) == {"r1"}
    shutil.rmtree(desk.recipe.vault / desk.recipe.ledger.name / "r2")
    with pytest.raises(DataError, match="a request's records must be in the vault"):
        asked_for(desk.recipe, ledger)


def test_what_was_left_half_done_comes_before_what_waits(desk: Desk) -> None:
    for number, request_id in enumerate(("r1", "r2", "r3")):
        desk.add(request_id, 2 * number, 2 * number + 2)
    assert (found := next_request(desk.ledger())) is not None
    assert found.id == "r1"
    with open_work(desk.recipe) as work:
        work.record("train", "r3")
    assert (found := next_request(desk.ledger())) is not None
    assert found.id == "r3"
    desk.train("r2")
    assert (found := next_request(desk.ledger())) is not None
    assert found.id == "r2", "of two that are half done, the one that was added first"


def test_version_n_plus_one_is_version_n_and_one_more(untouched: Desk) -> None:
    assert untouched.champion() == (2, ("r1", "r2"))
    assert untouched.actions()[-3:] == [("trained", "r2"), ("stacked", "r2"), ("promoted", "r2")]
    ledger = untouched.ledger()
    assert ledger.active == ("r1", "r2")
    _version, folder = untouched.registry.download(untouched.model, 1, untouched.file.parent / "one")
    assert read_stack_card(folder).request_ids == ("r1",)
    entry = ledger.entries[-1]
    _version, folder = untouched.registry.download(untouched.model, 2, untouched.file.parent / "two")
    assert entry.details.stack == digest_stack(folder)
    assert {"r1/forget_unseen/rouge_l_recall", "r2/forget_unseen/rouge_l_recall"} <= entry.details.evaluation.keys()
    assert untouched.run("verify") == 0


def test_the_run_of_a_stack_shows_report_numbers_and_course(untouched: Desk, tmp_path: Path) -> None:
    client = untouched.registry._client
    run_id = untouched.ledger().entries[-1].details.run_id
    assert run_id is not None
    assert client.get_run(run_id).data.metrics["stack/num_requests"] == 2
    stored = Path(client.download_artifacts(run_id, "promotion/stack_report.json", str(tmp_path)))
    report = StackReport.model_validate_json(stored.read_text())
    assert report.request_ids == ("r1", "r2")
    assert [member.num_prompts for member in report.members] == [3, 3]
    assert Path(client.download_artifacts(run_id, "figures/sequence.png", str(tmp_path))).read_bytes()[:4] == b"\x89PNG"
    assert [step.label for step in course_of(untouched.ledger())] == ["+r1", "+r2"]


def test_the_base_is_asked_once_for_a_request_whatever_stack_is_judged(untouched: Desk) -> None:
    [path] = (untouched.recipe.output / "reference").glob(f"*.{untouched.recipe.ledger.name}.jsonl")
    sets = [json.loads(line)["set_name"] for line in path.read_text().splitlines()]
    assert (sets.count("request r1"), sets.count("request r2")) == (3, 3)
    assert len(sets) == len(path.read_text().splitlines()) == 6 + sets.count("retain") + sets.count("ordinary")
    assert "live" not in path.read_text(), "no word of what is to be forgotten"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingError("loss and gradients must stay finite"), "failed"),
        (CacheError("a prefix cache must be finished"), "training"),
        (DiskError("a disk must have room"), "training"),
        (StorageError("shared storage must be reached"), "training"),
        (OutageError("MLflow must be able to record metrics"), "training"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, GrunError) else str(value),
)
def test_what_a_training_stands_on_says_nothing_about_the_request(
    desk: Desk, error: GrunError, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with the same command; a request that failed waits for somebody."""

    def found_wrong(recipe: Recipe, *_args: object, **_options: object) -> NoReturn:
        forget_error(run_folder(recipe))
        write_error(run_folder(recipe), error)
        found = read_error(run_folder(recipe))
        assert found is not None
        raise found

    desk.add("r1", 0, 3)
    monkeypatch.setattr(training, "trained", found_wrong)
    with pytest.raises(type(error)):
        desk.run("next")
    assert desk.ledger().state("r1").status == status


def test_a_request_that_does_damage_is_declined_and_the_champion_stays(served: Desk) -> None:
    served.add("r3", 6, 8)
    served.train("r3", threshold=0.0)
    assert served.run("next") == 3
    assert served.champion() == (2, ("r1", "r2"))
    last = served.ledger().entries[-1]
    assert (last.action, last.details.version) == ("declined", 3)
    assert "gate/false_open_rate of all gates together must be at most 0.05" in last.reason
    assert served.ledger().state("r3").status == "failed"
    assert served.run("next") == 0, "there is nothing to do until somebody trains it anew"
    assert served.ledger().entries[-1] == last


def test_revoking_leaves_the_others_as_they_are_and_reinstating_puts_it_last(served: Desk) -> None:
    _version, before = served.registry.download(served.model, 2, served.file.parent / "before")
    assert served.run("revoke", "r1", "--reason", "withdrawn") == 0
    assert served.champion() == (3, ("r2",))
    _version, after = served.registry.download(served.model, 3, served.file.parent / "after")
    kept, was = read_stack_card(after).members[0], read_stack_card(before).members[1]
    assert kept == was
    last = served.ledger().entries[-1]
    assert (last.action, last.request_id, last.reason) == ("revoked", "r1", "withdrawn")
    with pytest.raises(LedgerError, match=r"`revoke` needs a request that is .* got 'r1', which is revoked"):
        served.run("revoke", "r1", "--reason", "again")
    assert served.run("revoke", "r1", "--reason", "withdrawn") == 0, "it has done that already"
    assert served.ledger().entries[-1] == last
    # its adapter comes out of the registry where it is kept no longer
    shutil.rmtree(served.folder / "adapters")
    assert served.run("reinstate", "r1", "--reason", "asked again") == 0
    assert served.champion() == (4, ("r2", "r1"))
    assert served.ledger().active == ("r2", "r1")
    last = served.ledger().entries[-1]
    assert served.run("reinstate", "r1", "--reason", "asked again") == 0, "likewise"
    assert served.ledger().entries[-1] == last
    assert served.run("verify") == 0


def test_revoking_the_last_request_retires_the_champion(served: Desk) -> None:
    for request_id in ("r2", "r1"):
        assert served.run("revoke", request_id, "--reason", "withdrawn") == 0
    assert served.champion() is None
    assert served.ledger().active == ()
    assert [record.action for record in served.registry.history(served.model)] == ["promote", "promote", "promote", "retire"]
    assert served.registry.download(served.model, 3, served.file.parent / "old")[0] == 3, "old versions stay"
    assert served.run("reinstate", "r1", "--reason", "asked again") == 0
    assert served.champion() == (4, ("r1",))


def test_what_the_state_does_not_allow_is_refused_before_anything_starts(
    untouched: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = untouched.ledger().entries
    monkeypatch.setattr(commands, "connected", lambda _recipe: pytest.fail("a cluster was started"))
    for command, message in {
        "revoke demo-9 --reason no": "a request must be in the ledger, got 'demo-9'",
        "reinstate r1 --reason no": "`reinstate` needs a request that is revoked .* got 'r1', which is active",
        "train r1": "`train` needs a request that is pending or training or failed .* got 'r1', which is active",
        "train": "a request must wait for its training, got none of 2 that does",
    }.items():
        with pytest.raises(LedgerError, match=message):
            untouched.run(*command.split())
    with pytest.raises(ConfigError, match="--reason"):
        untouched.run("revoke", "r1")
    assert untouched.ledger().entries == before


def test_one_worker_at_a_time(desk: Desk) -> None:
    desk.add("r1", 0, 3)
    desk.train("r1")
    with LedgerStore.open(desk.recipe).hold("alice@elsewhere:7"), pytest.raises(LedgerBusyError, match="alice@elsewhere:7"):
        desk.run("next")
    assert desk.champion() is None


class Killed(BaseException):
    """Stands for SIGKILL between two steps: nothing after it is done, and nothing before it undone."""


def killed_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, when: str = "") -> None:
    """End the next call of a method before it does anything."""
    original = getattr(owner, name)
    done: list[bool] = []

    def method(self: object, *arguments: Any, **options: Any) -> Any:
        if not done and (not when or when in arguments):
            done.append(True)
            raise Killed
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize(
    ("owner", "name", "when"),
    [(Work, "record", "stacked"), (Registry, "promote", ""), (Registry, "attach", ""), (Work, "record", "promoted")],
    ids=["registered", "judged", "reported", "promoted"],
)
def test_whoever_is_killed_between_two_steps_is_succeeded(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, when: str
) -> None:
    desk.add("r1", 0, 3)
    desk.train("r1")
    killed_at(monkeypatch, owner, name, when=when)
    with pytest.raises(Killed):
        desk.run("next")
    assert desk.ledger().state("r1").status == "trained"
    assert desk.run("next") == 0
    assert desk.champion() == (1, ("r1",)), "one version, registered once"
    assert desk.actions() == [("add", "r1"), ("train", "r1"), ("trained", "r1"), ("stacked", "r1"), ("promoted", "r1")]
    finished = [record.action for record in desk.registry.history(desk.model) if record.status == "FINISHED"]
    assert finished == ["promote"]


@pytest.mark.parametrize("when", ["revoked", "stacked"])
def test_a_revocation_that_was_cut_off_goes_on(served: Desk, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    killed_at(monkeypatch, Work, "record", when=when)
    with pytest.raises(Killed):
        served.run("revoke", "r1", "--reason", "withdrawn")
    assert served.run("revoke", "r1", "--reason", "withdrawn") == 0
    assert served.champion() == (3, ("r2",))
    assert served.ledger().active == ("r2",)


def test_a_retirement_that_was_cut_off_goes_on(served: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    served.run("revoke", "r1", "--reason", "withdrawn")
    killed_at(monkeypatch, Work, "record", when="revoked")
    with pytest.raises(Killed):
        served.run("revoke", "r2", "--reason", "withdrawn")
    assert served.champion() is None
    assert served.run("revoke", "r2", "--reason", "withdrawn") == 0
    assert served.ledger().state("r2").status == "revoked"


def test_a_stack_that_others_have_changed_since_is_made_anew(desk: Desk) -> None:
    desk.add("r1", 0, 3)
    desk.train("r1")
    with open_work(desk.recipe) as work:
        first = stack_version(work, "r1", ["r1"])
        assert stack_version(work, "r1", ["r1"]) == first
    desk.add("r2", 3, 6)
    desk.train("r2")
    with open_work(desk.recipe) as work:
        stack_version(work, "r2", ["r2"])
        serve_stack(work, "r1", ["r1"], done="promoted")
        again = stack_version(work, "r2", ["r1", "r2"])
    assert (again.version, again.members) == (3, ("r1", "r2"))


def test_an_adapter_that_is_nowhere_is_named(desk: Desk) -> None:
    desk.add("r1", 0, 3)
    desk.train("r1")
    shutil.rmtree(desk.folder / "adapters")
    with pytest.raises(AdapterError, match="the adapter of 'r1' must be where it was kept or in a registered stack"):
        desk.run("next")


def test_an_adapter_that_was_changed_is_not_stacked(desk: Desk) -> None:
    desk.add("r1", 0, 3)
    desk.train("r1")
    [kept] = (desk.folder / "adapters").iterdir()
    tensors = kept / "adapter.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    with pytest.raises(GrunError):
        desk.run("next")
    assert desk.champion() is None


def test_a_stack_is_judged_on_records_that_nobody_asked_for(desk: Desk, data_folder: Path) -> None:
    with open_work(desk.recipe) as work:
        holdout = read_jsonl(data_folder / "holdout.jsonl")
        sets = StackSets.of(without(work.shared.splits, holdout[:1]), {"r1": holdout[:1]})
        assert holdout[0].digest not in {prompt.record.digest for prompt in sets.ordinary.prompts}
        assert [prompt.wording for prompt in sets.requests["r1"].prompts] == ["paraphrase"]
        with pytest.raises(DataError, match="a stack must be judged on held-out records that nobody asked to forget, got none"):
            StackSets.of(without(work.shared.splits, holdout), {})
