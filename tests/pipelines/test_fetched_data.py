"""Records named by URI: the same as from a local folder, fetched into a private one that is gone afterwards."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from grun.config import JsonlData, Recipe, TofuData
from grun.data.records import Record
from grun.data.splits import Splits, read_splits
from grun.errors import ConfigError, DataError, StorageError
from pipelines import fetched_data
from pipelines.fetched_data import fetched_records, fetched_splits
from pipelines.prepared import plan
from pipelines.storage import Storage


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture
def uploaded(place: str, data_folder: Path) -> str:
    storage = Storage.open(place, "data.path")
    for path in sorted(data_folder.iterdir()):
        storage.upload(path, f"inner/{path.name}" if path.stem == "holdout" else path.name)
    storage.write("unrelated.jsonl", b"x" * 100)
    return place


def test_records_are_those_of_a_local_folder(
    uploaded: str, data_folder: Path, kept: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[str]]] = []

    def noted(data: JsonlData) -> Splits:
        folder = Path(data.path)
        seen.append((folder.stat().st_mode & 0o777, sorted(path.name for path in folder.rglob("*.jsonl"))))
        return read_splits(data)

    monkeypatch.setattr(fetched_data, "read_splits", noted)
    recipe = make_recipe(data={"path": uploaded, "holdout": "inner/holdout.jsonl"})
    found = plan(recipe)
    local = read_splits(make_recipe().data)
    assert found.splits == local
    assert found.request.forget.location == f"{uploaded}#forget.jsonl"
    assert seen == [(0o700, ["forget.jsonl", "holdout.jsonl", "retain.jsonl"])]
    assert list(kept.iterdir()) == []


def test_tofu_by_uri(place: str, tofu_folder: Path, kept: Path) -> None:
    storage, data = Storage.open(place, "data.path"), TofuData(path=str(tofu_folder), forget="forget01")
    for name in data.files:
        if (tofu_folder / name).is_file():
            storage.upload(tofu_folder / name, name)
    assert fetched_splits(data.model_copy(update={"path": place})) == read_splits(data)
    assert list(kept.iterdir()) == []


def test_what_is_wrong_is_said_of_the_uri(uploaded: str, kept: Path) -> None:
    with pytest.raises(DataError, match=rf"{uploaded}/elsewhere\.jsonl"):
        fetched_splits(JsonlData(path=uploaded, forget="elsewhere.jsonl"))
    with pytest.raises(
        DataError, match=r"`data\.path` must name a place that holds records, got .*/nowhere' without forget\.jsonl or"
    ):
        fetched_splits(JsonlData(path=f"{uploaded}/nowhere"))
    with pytest.raises(StorageError, match=r"^`data\.path` must be a URI of shared storage"):
        fetched_splits(JsonlData(path="foo://somewhere"))
    assert list(kept.iterdir()) == []


def test_one_file_of_a_request(uploaded: str, data_folder: Path, kept: Path) -> None:
    def digests(rows: tuple[Record, ...]) -> list[str]:
        return [row.digest for row in rows]

    assert digests(fetched_records(f"{uploaded}/forget.jsonl")) == digests(fetched_records(str(data_folder / "forget.jsonl")))
    with pytest.raises(ConfigError, match=r"`--forget` must be a URI without credentials, got 's3://\*\*\*@bucket/x' with some"):
        fetched_records("s3://key:secret@bucket/x")
    assert list(kept.iterdir()) == []


def test_a_name_with_credentials_is_in_no_message() -> None:
    for section in (
        {"data": {"kind": "jsonl", "path": "s3://key:hidden@bucket/x"}},
        {"cache": {"uri": "s3://key:hidden@bucket/x"}},
    ):
        with pytest.raises(ConfigError, match="must be a URI without credentials") as error:
            Recipe.parse(section)
        assert "hidden" not in str(error.value)
    with pytest.raises(ConfigError, match="leave them to the environment"):
        Recipe.parse({"cache": {"uri": "s3://bucket/x?secret_key=hidden"}})


def test_settings_of_shared_caches() -> None:
    assert Recipe.parse({"cache": {"uri": "s3://bucket/x?endpoint_override=host:9000&scheme=http", "local": "/nvme"}}).cache.uri
    for cache, said in (
        ({"local": "/nvme"}, "without a `uri`; set `cache.uri`"),
        ({"uri": "s3://b/x", "local": "nvme"}, "`local` must be an absolute path, as workers run elsewhere, got 'nvme'"),
        ({"uri": "bucket/x"}, "must be a URI such as"),
    ):
        with pytest.raises(ConfigError, match=said):
            Recipe.parse(json.loads(json.dumps({"cache": cache})))
