"""Nodes' copies of shared prefix caches whose cache was deleted: which are left, and how they go.

A node drops them whenever it needs a cache (:meth:`pipelines.shared_caches.SharedCaches.fetch`). This is for whoever cannot wait:
on the node that he is on, and on every node of the cluster that `RAY_ADDRESS` names.
"""

import os
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grun.config import Recipe
from grun.errors import ClusterError
from pipelines.cluster import connected
from pipelines.console import note
from pipelines.shared_caches import SharedCaches

__all__ = ["copies_left", "sweep_nodes"]

_NODE_SECONDS = 60.0
"""How long a node has to start a process and delete files."""


def sweep_nodes(recipe: Recipe) -> tuple[str, ...]:
    """Delete copies of deleted caches on this node and on those of the cluster, as far as there is one; return the names of caches.

    Raises:
        StorageError: what is at `cache.uri` cannot be reached.
    """
    shared = SharedCaches.of(recipe)
    if shared is None:
        return ()
    swept = set(shared.sweep())
    if not copies_left(recipe) or "RAY_ADDRESS" not in os.environ:
        return tuple(sorted(swept))
    try:
        with connected(recipe):
            swept.update(*_on_every_node(recipe))
    except ClusterError as error:
        note(f"copies on the nodes of the cluster stay for now: {error}")
    return tuple(sorted(swept))


def _on_every_node(recipe: Recipe) -> list[tuple[str, ...]]:
    """Sweep all nodes at once; those that do not answer in time are passed over, and their copies stay written down."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    sweeps = [
        cast(Any, ray.remote(_sweep))
        .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(recipe)
        for node in nodes
    ]
    done, _late = ray.wait(sweeps, num_returns=len(sweeps), timeout=_NODE_SECONDS)
    found = []
    for sweep in done:
        try:
            found.append(cast(tuple[str, ...], ray.get(sweep)))
        except ray.exceptions.RayError as error:
            note(f"a node did not delete its copies, and will when it needs a cache: {str(error).strip().splitlines()[-1]}")
    return found


def _sweep(recipe: Recipe) -> tuple[str, ...]:
    shared = SharedCaches.of(recipe)
    assert shared is not None
    return shared.sweep()


def copies_left(recipe: Recipe) -> tuple[str, ...]:
    """Nodes that still have copies of deleted caches, as `node:folder`."""
    shared = SharedCaches.of(recipe)
    if shared is None:
        return ()
    return tuple(sorted({copy for entry in shared.entries() if entry.is_deleted for copy in entry.copies}))
