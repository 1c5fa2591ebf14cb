"""Splits: decided by content alone, disjoint or refused."""

import json
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from grun import config
from grun.config import HubData, JsonlData, RequestConfig, TofuData
from grun.data.records import QARecord, Record, TextRecord, digest_records, to_json
from grun.data.splits import hash_fraction, in_part, make_request, read_splits, with_environment
from grun.errors import DataError

FORGET = [QARecord(f"Who painted bridge {n}?", f"Ilva painted bridge {n}.") for n in range(5)]
RETAIN = [QARecord(f"Who keeps lock {n}?", f"Bram keeps lock {n}.") for n in range(200)]

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Write a data folder: `folder(forget=records, retain=records)`."""

    def write(**files: Iterable[Record]) -> Path:
        for name, records in {"forget": FORGET, "retain": RETAIN, **files}.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(to_json(record)) + "\n" for record in records))
        return tmp_path

    return write


def jsonl(path: Path, **fields: Any) -> JsonlData:
    return JsonlData(path=str(path), **fields)


def test_holdout_is_a_share_of_retain(folder: Folder) -> None:
    splits = read_splits(jsonl(folder(), holdout_frac=0.2))
    assert set(splits.forget) == set(FORGET)
    assert set(splits.retain) | set(splits.holdout) == set(RETAIN)
    assert not set(splits.retain) & set(splits.holdout)
    assert 20 <= len(splits.holdout) <= 60


def test_order_of_the_rows_is_immaterial(folder: Folder) -> None:
    data = jsonl(folder())
    in_order = read_splits(data)
    folder(forget=reversed(FORGET), retain=random.sample(RETAIN, len(RETAIN)))
    shuffled = read_splits(data)
    assert shuffled.retain != in_order.retain
    for name in ("forget", "retain", "holdout"):
        assert set(getattr(shuffled, name)) == set(getattr(in_order, name))
    request = RequestConfig(id="r")
    assert make_request(request, data, shuffled) == make_request(request, data, in_order)


def test_a_new_record_moves_no_old_one(folder: Folder) -> None:
    before = read_splits(jsonl(folder()))
    added = [QARecord(f"Who rings bell {n}?", "Odo does.") for n in range(100)]
    after = read_splits(jsonl(folder(retain=[*added, *RETAIN])))
    assert set(after.holdout) - set(before.holdout) <= set(added)
    assert set(before.holdout) <= set(after.holdout)


def test_a_larger_share_only_adds_to_the_holdout(folder: Folder) -> None:
    path = folder()
    small, large = (set(read_splits(jsonl(path, holdout_frac=share)).holdout) for share in (0.1, 0.4))
    assert small < large


def test_halves_are_exhaustive_exclusive_and_independent_of_the_holdout() -> None:
    digests = [TextRecord(f"text {n}").digest for n in range(4000)]
    assert all(in_part(digest, "validation") != in_part(digest, "test") for digest in digests)
    assert all(in_part(digest, "all") for digest in digests)
    for share in (0.1, 0.5):
        held_out = [digest for digest in digests if hash_fraction(digest) < share]
        assert len(held_out) == pytest.approx(share * 4000, rel=0.15)
        # four standard deviations of a fair coin
        assert sum(in_part(digest, "test") for digest in held_out) == pytest.approx(
            len(held_out) / 2, abs=2 * len(held_out) ** 0.5
        )


def test_hash_fraction_covers_the_unit_interval() -> None:
    assert hash_fraction("0" * 64) == 0
    assert hash_fraction("8" + "0" * 63) == 0.5
    assert 0.999 < hash_fraction("f" * 64) < 1


def test_named_holdout_is_taken_whole(folder: Folder) -> None:
    held_out = [QARecord("Who rings the bell?", "Odo does."), TextRecord("Bells ring at noon.")]
    splits = read_splits(jsonl(folder(ordinary=held_out), holdout="ordinary.jsonl"))
    assert splits.holdout == tuple(held_out)
    assert splits.retain == tuple(RETAIN)
    assert splits.utility == {"retain": splits.retain, "ordinary": splits.holdout}


@pytest.mark.parametrize(
    "shared",
    [
        FORGET[2],
        QARecord("who  painted BRIDGE 2?", "Ilva painted bridge 2. "),
        TextRecord("Who painted bridge 2? Ilva painted bridge 2."),
    ],
    ids=["same", "other case and spacing", "as a text"],
)
@pytest.mark.parametrize("name", ["retain", "holdout"])
def test_forget_shared_with_another_set_is_refused(folder: Folder, name: str, shared: Record) -> None:
    files: dict[str, list[Record]] = {"holdout": [TextRecord("Bells ring at noon.")], "retain": [*RETAIN]}
    files[name].append(shared)
    with pytest.raises(DataError, match=rf"forget and {name} must not overlap, got 1 shared record\(s\).*remove them") as caught:
        read_splits(jsonl(folder(**files), holdout="holdout.jsonl"))
    assert f"row 3 of the forget set (digest {FORGET[2].digest[:12]})" in str(caught.value)
    assert "painted" not in str(caught.value).casefold(), "text to forget does not belong in a message"


def test_retain_shared_with_holdout_is_refused(folder: Folder) -> None:
    """What is never trained on cannot be trained on."""
    path = folder(holdout=[TextRecord("Bells ring at noon."), RETAIN[7]])
    with pytest.raises(DataError, match=r"holdout and retain must not overlap, got 1 shared record\(s\).*remove them"):
        read_splits(jsonl(path, holdout="holdout.jsonl"))


def test_nonmembers_are_read_where_the_source_names_them(folder: Folder) -> None:
    outsiders = [QARecord("Who swims?", "Runa does."), QARecord("Who dives?", "Sefa does.")]
    path = folder(outsiders=outsiders)
    assert read_splits(jsonl(path)).nonmembers == ()
    assert read_splits(jsonl(path, nonmembers="outsiders.jsonl")).nonmembers == tuple(outsiders)


@pytest.mark.parametrize("shared", [FORGET[0], RETAIN[0]], ids=["forget", "retain or holdout"])
def test_nonmembers_that_some_model_was_taught_are_refused(folder: Folder, shared: Record) -> None:
    path = folder(outsiders=[QARecord("Who swims?", "Runa does."), shared])
    with pytest.raises(DataError, match=r"nonmembers and (forget|retain|holdout) must not overlap.*row 2 of the nonmembers set"):
        read_splits(jsonl(path, nonmembers="outsiders.jsonl"))


def test_a_tofu_folder_with_a_holdout_file_has_nonmembers(tmp_path: Path) -> None:
    files = {
        "forget01_perturbed": FORGET,
        "retain99": RETAIN,
        "retain_perturbed": RETAIN[:3],
        "real_authors_perturbed": [QARecord("Who wrote?", "He did.")],
        "world_facts_perturbed": [QARecord("What flows?", "Water does.")],
    }
    for name, records in files.items():
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(to_json(record)) + "\n" for record in records))
    data = TofuData(path=str(tmp_path), forget="forget01")
    assert read_splits(data).nonmembers == ()
    outsider = QARecord("Who swims?", "Runa does.")
    (tmp_path / "holdout01.json").write_text(json.dumps(to_json(outsider)) + "\n")
    (tmp_path / "holdout05.json").write_text("of another split")
    assert read_splits(data).nonmembers == (outsider,)


def test_an_environment_is_read_from_a_file_of_its_own(folder: Folder) -> None:
    path = folder(environment=[QARecord("What is 2 plus 2?", "4."), TextRecord("Rain falls.")])
    splits = read_splits(jsonl(path))
    assert with_environment(splits, None) == splits
    assert splits.environment == ()
    found = with_environment(splits, str(path / "environment.jsonl"))
    assert found.environment == (QARecord("What is 2 plus 2?", "4."), TextRecord("Rain falls."))
    assert found.forget == splits.forget


def test_an_environment_shared_with_what_is_forgotten_or_held_out_is_refused(folder: Folder) -> None:
    splits = replace(read_splits(jsonl(folder())), nonmembers=(QARecord("Who swims?", "Runa does."),))
    for name in ("forget", "holdout", "nonmembers"):
        path = folder(environment=getattr(splits, name)[:1]) / "environment.jsonl"
        with pytest.raises(DataError, match=f"environment and {name} must not overlap, got 1 shared record"):
            with_environment(splits, str(path))
    assert with_environment(splits, str(folder(environment=splits.retain[:1]) / "environment.jsonl")).environment


def test_empty_sets(folder: Folder) -> None:
    path = folder(forget=[])
    with pytest.raises(DataError, match=r"must hold at least one record, got the empty file '.*forget.jsonl'"):
        read_splits(jsonl(path))
    few = [record for record in RETAIN if hash_fraction(record.digest) > 0.5]
    with pytest.raises(DataError, match=r"the holdout set must hold at least one record, got none; raise `data.holdout_frac`"):
        read_splits(jsonl(folder(retain=few)))


@pytest.mark.parametrize("source", [JsonlData, TofuData])
def test_missing_folder(tmp_path: Path, source: type[JsonlData] | type[TofuData]) -> None:
    with pytest.raises(DataError, match=r"`data.path` must be .*folder.*, got '.*nowhere'; check the path"):
        read_splits(source(path=str(tmp_path / "nowhere")))


def test_request_pins_what_it_was_made_about(folder: Folder) -> None:
    data = jsonl(folder())
    splits = read_splits(data)
    request = make_request(RequestConfig(id="gdpr-17", reason="art. 17"), data, splits)
    assert (request.id, request.reason) == ("gdpr-17", "art. 17")
    assert request.forget.location == f"{data.path}#forget.jsonl"
    assert request.forget.kind == "jsonl"
    assert request.forget.num_records == len(FORGET)
    assert request.data_digests == {name: digest_records(getattr(splits, name)) for name in ("forget", "retain", "holdout")}
    other = make_request(RequestConfig(), data, read_splits(jsonl(folder(forget=FORGET[1:]))))
    assert other.forget.digest != request.forget.digest
    assert other.retain.digest == request.retain.digest


def test_embedded_testbed_is_a_valid_request() -> None:
    data = config.TestbedData()
    splits = read_splits(data)
    request = make_request(RequestConfig(), data, splits)
    assert request.forget.location == "seed 0#forget"
    assert request.forget.num_records == len(splits.forget) > 0
    assert make_request(RequestConfig(), data, read_splits(data)) == request
    assert make_request(RequestConfig(), data, read_splits(config.TestbedData(seed=1))).forget.digest != request.forget.digest


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    outsiders = [QARecord("Who swims?", "Runa does.")]
    hub = {"forget05": FORGET, "retain95": RETAIN, "holdout05": outsiders}

    def load_dataset(path: str, name: str, *, split: str, revision: str | None) -> list[dict[str, Any]]:
        if (path, split, revision) != ("somebody/facts", "train", "v1"):
            raise FileNotFoundError(path)
        return [to_json(record) for record in hub[name]]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    splits = read_splits(HubData(path="somebody/facts", revision="v1"))
    assert splits.forget == tuple(FORGET)
    assert set(splits.retain) | set(splits.holdout) == set(RETAIN)
    assert splits.nonmembers == ()
    assert read_splits(HubData(path="somebody/facts", revision="v1", nonmembers="holdout05")).nonmembers == tuple(outsiders)
    with pytest.raises(DataError, match=r"got 'nobody/facts' \('forget05', split 'train'\): FileNotFoundError.*check the name"):
        read_splits(HubData(path="nobody/facts"))


@pytest.mark.parametrize(("split", "num_forget"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_real_tofu(tofu_folder: Path, split: Literal["forget01", "forget05", "forget10"], num_forget: int) -> None:
    splits = read_splits(TofuData(path=str(tofu_folder), forget=split))
    assert len(splits.forget) == num_forget
    assert len(splits.retain) + len(splits.holdout) == 4000 - num_forget
    assert 0.07 < len(splits.holdout) / (4000 - num_forget) < 0.13
    assert {name: len(records) for name, records in splits.utility.items()} == {
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
    }
    for record in splits.forget:
        assert isinstance(record, QARecord)
        assert record.paraphrased_question
        assert record.paraphrased_answer
        assert len(record.wrong_answers) == 5
    kept = {record.digest for records in (splits.retain, splits.holdout) for record in records}
    assert not kept & {record.digest for record in splits.forget}
    assert len(kept) == 4000 - num_forget
