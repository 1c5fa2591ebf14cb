"""A request on files: invented questions with paraphrases and wrong answers, and a recipe that trains on them in seconds."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grun.config import Recipe, merge
from pipelines import benchmark
from tests.pipelines.s3_server import S3Server, running_s3

MakeRecipe = Callable[..., Recipe]

TOWNS = ("Harn", "Oost", "Selk", "Lunt", "Brae", "Vint", "Moor", "Tarn")


def _rows(names: str, verb: str) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Where does {name} {verb}?",
            "answer": f"In {TOWNS[index % 8]}{', by the sea' * (index % 3)}.",
            "paraphrased_question": f"In what town does {name} {verb}?",
            "paraphrased_answer": f"The town is {TOWNS[index % 8]}.",
            "perturbed_answer": [f"In {TOWNS[(index + shift) % 8]}." for shift in (1, 2, 3)],
            "alternative_answers": [f"Near {TOWNS[(index + shift) % 8]}." for shift in (4, 5)],
        }
        for index, name in enumerate(names.split())
    ]


SETS = {
    "forget": _rows("Ilva Bram Nore Teun Mira Pavo Lotte Sem", "live"),
    "retain": _rows("Anse Bode Cato Dirk Elke Folk Gije Hedy Imre Joos Kaat Lief", "work"),
    "holdout": _rows("Maas Nele Otte Pim Roos Stef", "swim"),
}


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight records to forget, twelve to keep and six that are never trained on, as JSON Lines."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in SETS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_recipe(base_folder: Path, data_folder: Path) -> MakeRecipe:
    """Makes a recipe of six steps on the tiny base, with nested values laid over it."""
    below = {
        "request": {"id": "towns"},
        "data": {"kind": "jsonl", "path": str(data_folder), "holdout": "holdout.jsonl"},
        "model": {"path": str(base_folder)},
        "adapter": {"layers": [1, 3], "rank": 2, "gate": {"kind": "linear"}, "gate_threshold": 0.5},
        "objective": {"forget": {"kind": "gd"}, "retain": {"kind": "ce"}},
        "train": {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "report_every": 2},
        "evaluation": {"max_new_tokens": 4},
        "promotion": {"require_certificate": False},  # six held-out records bound nothing
        "cluster": {"num_cpus": 2, "object_store_mb": 80},
    }
    return lambda **above: Recipe.parse(merge(below, above))


@pytest.fixture
def recipe_file(tmp_path: Path, make_recipe: MakeRecipe) -> Callable[..., str]:
    """Writes such a recipe, with its output in the test's own folder, and returns the file's path."""

    def write(**above: Any) -> str:
        path = tmp_path / "recipe.yaml"
        recipe = make_recipe(**{"output": str(tmp_path / "outputs"), **above})
        path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server process, one for all tests."""
    with running_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The same, with its address and credentials in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI of an empty place on shared storage: a folder, and a bucket of a real server."""
    if request.param == "file":
        return f"file://{tmp_path}/shared/caches"
    server: S3Server = request.getfixturevalue("s3")
    return f"s3://{server.make_bucket(f'bucket-{uuid.uuid4().hex[:12]}')}/caches"


@pytest.fixture
def run_benchmark(tofu_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a benchmark at toy size on TOFU's rows, and reads back what it wrote."""

    def run(name: str, *more: str) -> dict[str, Any]:
        argv = [name, "--tiny", "--repeats", "1", "--data.path", str(tofu_folder), "--output", str(tmp_path), *more]
        assert benchmark.main(argv) == 0
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        values: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert values["command"].startswith(f"python pipelines/benchmark.py {name} ")
        assert {"date", "commit", "machine", "versions", "workload"} <= values.keys()
        assert values["repeats"] == 1
        fields = {"name", "value", "unit", "baseline", "ratio", "low", "high", "wall_ratio"}
        assert all(row.keys() == fields for row in values["rows"])
        rows: dict[str, Any] = {row["name"]: row for row in values["rows"]}
        assert len(rows) == len(values["rows"]), "a name stands for one row"
        return rows

    return run
