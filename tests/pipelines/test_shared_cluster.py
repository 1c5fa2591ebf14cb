"""Shared caches on a real Ray cluster of two nodes, a real S3 server, and no folder in common but the output."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from grun.config import Recipe
from pipelines import train
from pipelines.node_copies import copies_left, sweep_nodes
from pipelines.shared_caches import SharedCaches
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
    handler = signal.getsignal(signal.SIGTERM)
    cluster = Cluster()
    try:
        for folder in folders:
            folder.mkdir()
            environment = {**s3.environment, "TMPDIR": str(folder)}
            cluster.add_node(num_cpus=1, object_store_memory=80 * 10**6, include_dashboard=False, env_vars=environment)
        with mock.patch.dict(os.environ, {"RAY_ADDRESS": cluster.address}):
            yield folders
    finally:
        ray.shutdown()
        cluster.shutdown()
        signal.signal(signal.SIGTERM, handler)


def test_a_bucket_gives_every_node_its_cache_and_a_second_cluster_what_the_first_has_built(
    nodes: list[Path], s3: S3Server, make_recipe: Callable[..., Recipe], recipe_file: Callable[..., str], tmp_path: Path
) -> None:
    uri = f"s3://{s3.make_bucket('cluster')}/caches"

    def trained(name: str, cache: dict[str, object]) -> dict[str, torch.Tensor]:
        output = str(tmp_path / name)
        settings = {
            "cache": {"mode": "require", "sequences_per_shard": 15, **cache},
            "train": {"num_workers": 2, "engine": "torch"},
        }
        assert train.main(["--recipe", recipe_file(output=output, **settings)]) == 0
        return load_file(tmp_path / name / "runs" / "demo" / "adapter" / "adapter.safetensors")

    adapters = [trained("first", {"uri": uri}), trained("second", {"uri": uri}), trained("alone", {})]
    for name, value in adapters[2].items():
        assert torch.equal(adapters[0][name], value)
        assert torch.equal(adapters[1][name], value)
    recipe = make_recipe(output=str(tmp_path / "first"), cache={"uri": uri})
    shared = SharedCaches.of(recipe)
    assert shared is not None
    [entry] = shared.entries()
    assert len(entry.copies) == 2
    assert [len(list(node.rglob("cache.json"))) for node in nodes] == [1, 1]

    shared.delete(entry.name)
    assert len(copies_left(recipe)) == 2
    assert sweep_nodes(recipe) == (entry.name,)
    assert copies_left(recipe) == ()
    assert not [path for node in nodes for path in node.rglob("shard-*")]
