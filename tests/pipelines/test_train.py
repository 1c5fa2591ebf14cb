"""`train` on a real local Ray: what it leaves behind, and that an interrupted run ends where an uninterrupted one does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from grun.config import Recipe
from grun.errors import ClusterError, ConfigError
from pipelines import train
from pipelines.registry import Registry
from pipelines.tracking import Tracker
from pipelines.worker import OUTCOME_FILE, STOP_FILE

pytestmark = pytest.mark.slow  # every run starts worker processes, which import DeepSpeed

ROOT = Path(__file__).parents[2]
RecipeFile = Callable[..., str]


@pytest.fixture(scope="session")
def ray_token(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Ray's token in a folder of the tests, not in the user's home."""
    path = tmp_path_factory.mktemp("ray") / "token"
    path.write_text("0123456789abcdef" * 2, encoding="utf-8")
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


@pytest.fixture(scope="session")
def cluster(ray_token: dict[str, str]) -> Iterator[str]:
    """A cluster of one node with two CPUs that outlives the commands; `RAY_ADDRESS` names it."""
    with mock.patch.dict(os.environ, ray_token):
        head = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 * 10**6, "include_dashboard": False}
        )
        os.environ["RAY_ADDRESS"] = head.address
        try:
            yield head.address
        finally:
            ray.shutdown()
            head.shutdown()


@dataclass(frozen=True)
class Run:
    """What a training command left behind."""

    output: Path
    folder: Path

    @property
    def spool(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    @property
    def outcome(self) -> dict[str, object]:
        values: dict[str, object] = json.loads((self.folder / OUTCOME_FILE).read_text(encoding="utf-8"))
        return values

    def assert_same_adapter(self, other: "Run") -> None:
        mine, his = (load_file(run.folder / "adapter" / "adapter.safetensors") for run in (self, other))
        assert mine.keys() == his.keys()
        for name, value in mine.items():
            torch.testing.assert_close(his[name], value, rtol=0, atol=1e-6)


@pytest.fixture(scope="session")
def straight(cluster: str, tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., Recipe]) -> Run:
    """An uninterrupted run on two DeepSpeed workers."""
    output = tmp_path_factory.mktemp("straight")
    return _train(make_recipe(output=str(output)))


def _train(recipe: Recipe, *options: str) -> Run:
    recipe.output.mkdir(parents=True, exist_ok=True)
    file = recipe.output / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")  # JSON is YAML
    assert train.main(["--recipe", str(file), *options]) == 0
    return Run(recipe.output, recipe.output / "runs" / recipe.name)


def test_a_run_leaves_an_adapter_and_every_step_behind(straight: Run) -> None:
    assert sorted(path.name for path in (straight.folder / "adapter").iterdir()) == ["adapter.json", "adapter.safetensors"]
    assert [line["step"] for line in straight.spool] == [1, 2, 3, 4, 5, 6]
    outcome = straight.outcome
    assert 0.49 < float(str(outcome.pop("resident_share"))) <= 0.55
    assert outcome == {"steps": 6, "total_steps": 6, "stopped_early": False}
