"""Shared caches on a real Ray cluster of two nodes, a real S3 server, and no folder in common but the output."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grun.config import Recipe
from pipelines import train
from pipelines.node_copies import copies_left, sweep_nodes
from pipelines.shared_caches import SharedCaches
from tests.clusters import STORE, running_cluster
from tests.pipelines.s3_server import S3Server

pytestmark = [
    pytest.mark.slow,  # two nodes, and every run starts worker processes
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]


@pytest.fixture
def nodes(tmp_path: Path, s3: S3Server) -> Iterator[list[Path]]:
    """Two nodes of one CPU each, with temporary folders of their own: what they have in common they get from the bucket."""
    folders = [tmp_path / name for name in ("node0", "node1")]
    with running_cluster() as cluster:
        for folder in folders:
            folder.mkdir()
            environment = {**s3.environment, "TMPDIR": str(folder)}
            cluster.add_node(num_cpus=1, object_store_memory=STORE, include_dashboard=False, env_vars=environment)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield folders


def test_a_bucket_gives_every_node_its_cache_and_who_comes_later_what_was_built(
    nodes: list[Path],
    s3: S3Server,
    make_recipe: Callable[..., Recipe],
    recipe_file: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri, fresh = f"s3://{s3.make_bucket('cluster')}/caches", tmp_path / "fresh"

    def trained(name: str, cache: dict[str, str]) -> tuple[dict[str, torch.Tensor], str]:
        settings = {
            "cache": {"mode": "require", "sequences_per_shard": 15, **cache},
            "train": {"num_workers": 2, "engine": "torch"},
        }
        capsys.readouterr()
        assert train.main(["--recipe", recipe_file(name=name, **settings)]) == 0
        return load_file(tmp_path / "outputs" / "runs" / name / "adapter" / "adapter.safetensors"), capsys.readouterr().err

    first, said = trained("first", {"uri": uri})
    assert "building the prefix cache" in said
    assert [len(list(node.rglob("cache.json"))) for node in nodes] == [1, 1]
    second, said = trained("second", {"uri": uri, "local": str(fresh)})
    assert "building the prefix cache" not in said
    assert len(list(fresh.rglob("cache.json"))) == 1, "two workers on one folder have one copy"
    alone, _said = trained("alone", {})
    for name, value in alone.items():
        assert torch.equal(first[name], value)
        assert torch.equal(second[name], value)

    recipe = make_recipe(output=str(tmp_path / "outputs"), cache={"uri": uri})
    shared = SharedCaches.of(recipe)
    assert shared is not None
    [entry] = shared.entries()
    shared.delete(entry.name)
    assert len(copies_left(recipe)) == 3
    assert sweep_nodes(recipe) == (entry.name,)
    assert not [path for node in nodes for path in node.rglob("shard-*")]
    assert [copy.split(":")[1].startswith(str(fresh)) for copy in copies_left(recipe)] == [True]
