"""What a rule looks at: the documents of one folder, what they lead to, and what stands around them."""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k8s.check.kuberay import RayCluster
from k8s.check.network import Network
from k8s.check.pod import Container, Pod, containers
from k8s.check.pods import cluster_of, effective_pods, name_of, namespace_of, title
from k8s.check.repository import Repository
from k8s.check.services import Service, services
from k8s.check.strict_yaml import Document

__all__ = ["OURS", "STRANGERS", "Bundle", "is_ours"]

OURS = "grun-pipelines"
"""Name of the image that the repository builds."""
STRANGERS = (
    Pod("prometheus", "monitoring", "Pod/prometheus", "pod", {"app.kubernetes.io/name": "prometheus"}, {}, {"containers": []}),
    Pod("kube-dns", "kube-system", "Pod/kube-dns", "pod", {"k8s-app": "kube-dns"}, {}, {"containers": []}),
    Pod(
        "kuberay-operator",
        "kuberay-system",
        "Pod/kuberay-operator",
        "pod",
        {"app.kubernetes.io/name": "kuberay-operator"},
        {},
        {"containers": []},
    ),
    Pod("elsewhere", "elsewhere", "Pod/elsewhere", "pod", {"app": "elsewhere"}, {}, {"containers": []}),
)
"""Pods of others, that policies speak of or have to keep out."""


def is_ours(container: Mapping[str, Any]) -> bool:
    """Whether a container runs the image that the repository builds."""
    name = re.split(r"[:@]", str(container.get("image")).rpartition("/")[2])[0]
    return name == OURS


@dataclass(frozen=True)
class Bundle:
    """Rendered documents, with the repository and the standing system they are applied to."""

    name: str
    documents: list[Document]
    repository: Repository
    around: list[Document] = field(default_factory=list)
    """Documents that stand already where these are applied; looked up, and not checked again."""
    crds: Path | None = None
    """Folder of KubeRay's CustomResourceDefinitions."""
    is_complete: bool = True
    """Whether it is applied as it is; base and workloads are completed by overlays, which say where images come from."""

    @functools.cached_property
    def everything(self) -> list[Document]:
        """The documents and those around them; where both define an object, the first one counts."""
        keys = {_key(document) for document in self.documents}
        return [*self.documents, *(document for document in self.around if _key(document) not in keys)]

    @functools.cached_property
    def pods(self) -> list[Pod]:
        """The effective pods of the documents."""
        return effective_pods(self.documents)

    @functools.cached_property
    def services(self) -> list[Service]:
        """All services that can be named."""
        return services(self.everything)

    @functools.cached_property
    def network(self) -> Network:
        """Who may speak to whom."""
        return Network(self.everything, STRANGERS)

    @functools.cached_property
    def clusters(self) -> list[RayCluster]:
        """The Ray clusters that the documents ask for."""
        return [cluster for cluster in map(cluster_of, self.documents) if cluster]

    def of(self, *kinds: str) -> Iterator[Document]:
        """The documents of some kinds."""
        return (document for document in self.documents if document.get("kind") in kinds)

    def find(self, kind: str, name: str, namespace: str) -> Document | None:
        """An object, wherever it is."""
        wanted = (kind, namespace, name)
        return next((d for d in self.everything if (d.get("kind"), namespace_of(d), name_of(d)) == wanted), None)

    @functools.cached_property
    def containers(self) -> list[tuple[str, Pod, Container]]:
        """Every effective container with the place to be named: owner and path."""
        return [(f"{pod.owner} {pod.name} {path}", pod, container) for pod in self.pods for path, container in containers(pod)]

    def version(self, name: str) -> str:
        """A version of `k8s/versions.yaml`."""
        return self.repository.versions[name]


def _key(document: Document) -> tuple[str, str]:
    return namespace_of(document), title(document)
