"""NetworkPolicies where packets meet them: every pod of the rendered overlays as a namespace, every pair of them tried.

The rules are nftables', translated from the same documents that `k8s.check.network` evaluates; neither knows of the other.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from k8s.check.network import Network
from k8s.check.pod import Pod as Template
from k8s.check.pod import container_ports
from k8s.check.pods import effective_pods
from k8s.check.services import services
from tests.k8s.nodes.cluster import Cluster
from tests.k8s.nodes.machine import require
from tests.k8s.nodes.pod import Pod
from tests.k8s.nodes.reach import Listener, reached
from tests.k8s.system import overlay

ANY_PORT = 31999
"""A port that nobody names; Ray binds such ones."""


def stranger(name: str, namespace: str, labels: dict[str, str]) -> Template:
    """A pod of somebody else."""
    spec = {"containers": [{"name": "main", "image": "none", "ports": [{"containerPort": 53}]}]}
    return Template(name, namespace, "Pod/stranger", "pod", labels, {}, spec)


STRANGERS = (
    stranger("dns", "kube-system", {"k8s-app": "kube-dns"}),
    stranger("false-dns", "default", {"k8s-app": "kube-dns"}),
    stranger("operator", "kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
    stranger("false-operator", "default", {"app.kubernetes.io/name": "kuberay-operator"}),
    stranger("passer-by", "default", {}),
    stranger("intruder", "unlearning", {"app": "intruder"}),
)


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    require(renders=True)
    return overlay()


@pytest.fixture(scope="module")
def network(documents: list[dict[str, Any]]) -> Network:
    return Network(documents, strangers=STRANGERS)


@pytest.fixture(scope="module")
def ports(documents: list[dict[str, Any]]) -> list[int]:
    """Every port that some pod names, and one that none does."""
    named = {number for pod in effective_pods(documents) for _, number, _ in container_ports(pod)}
    return sorted({*named, 53, 10001, 52365, ANY_PORT})


@pytest.fixture(scope="module")
def made(documents: list[dict[str, Any]], network: Network, ports: list[int]) -> Iterator[set[tuple[str, str, int]]]:
    """All connections that could be made, of all pairs of pods at all ports."""
    with Cluster(documents, services(documents), images={}) as cluster:
        pods = {pod.name: pod for pod in cluster.create(*network.pods.values())}
        listeners = [Listener(pod, ports) for pod in pods.values()]
        yield reached({name: targets(name, pods, ports) for name in pods}, pods)
        for listener in listeners:
            listener.close()


def targets(name: str, pods: dict[str, Pod], ports: Sequence[int]) -> list[tuple[Pod, int]]:
    return [(pod, port) for other, pod in pods.items() if other != name for port in ports]


def test_connections_are_made_where_policies_allow_them_and_nowhere_else(
    made: set[tuple[str, str, int]], network: Network, ports: list[int]
) -> None:
    pairs = {(source, end, port) for source in network.pods for end in network.pods if source != end for port in ports}
    allowed = {pair for pair in pairs if network.allowed(*pair)}
    assert made == allowed
    assert 0 < len(allowed) < len(pairs) / 2


@pytest.mark.parametrize(
    ("source", "destination", "port", "expected"),
    [
        # what the pipelines need
        ("unlearn-worker-cpu", "unlearn-head", 6379, True),
        ("unlearn-head", "unlearn-worker-cpu", ANY_PORT, True),
        ("unlearn-worker-cpu", "mlflow", 5000, True),
        ("next-request", "unlearn-head", 8265, True),
        ("mlflow", "postgres", 5432, True),
        ("mlflow-migrate", "postgres", 5432, True),
        ("mlflow", "object-store", 8333, True),
        ("mlflow", "dns", 53, True),
        ("operator", "unlearn-head", 8265, True),
        # and nothing beyond
        ("unlearn-worker-cpu", "postgres", 5432, False),
        ("next-request", "unlearn-head", 6379, False),
        ("next-request", "unlearn-worker-cpu", ANY_PORT, False),
        ("next-request", "mlflow", 5000, False),
        ("sweep-head", "unlearn-head", 6379, False),
        ("intruder", "unlearn-head", 8265, False),
        ("intruder", "mlflow", 5000, False),
        ("passer-by", "postgres", 5432, False),
        ("passer-by", "unlearn-head", 8265, False),
        ("false-operator", "unlearn-head", 8265, False),
        ("mlflow", "false-dns", 53, False),
        ("postgres", "passer-by", 53, False),
        ("unlearn-head", "passer-by", 53, False),
    ],
)
def test_pairs_that_matter(made: set[tuple[str, str, int]], source: str, destination: str, port: int, expected: bool) -> None:
    assert ((source, destination, port) in made) is expected
