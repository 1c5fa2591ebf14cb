"""Clusters of several nodes, which are real raylets on this machine, started by the process of a test."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import ray
from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, without stubs
from ray.cluster_utils import Cluster

__all__ = ["STORE", "running_cluster"]

STORE = 80_000_000
"""Bytes of a node's object store."""


@contextmanager
def running_cluster(**head: Any) -> Iterator[Cluster]:
    """A cluster for the time of the context; with options of a head, it has one already.

    Every cluster of a process has to ask for a token as its local ones do by themselves: Ray remembers for the process that
    they do, so that a head which does not fails to reach this process, and ends its actors as ones that nobody holds.
    """
    handler = signal.getsignal(signal.SIGTERM)  # Ray installs one of its own
    with mock.patch.dict(os.environ, RAY_AUTH_MODE="token"):
        Config.initialize("")  # reads the environment
        cluster = Cluster(
            initialize_head=bool(head), head_node_args={"object_store_memory": STORE, "include_dashboard": False, **head}
        )
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            signal.signal(signal.SIGTERM, handler)
