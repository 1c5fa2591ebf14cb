"""What runs after the controllers have done their part: `effective_pods(documents)`."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from k8s.check.kuberay import RayCluster, pods_of_cluster
from k8s.check.pod import Pod, container_ports, containers
from k8s.check.rayjob import submitter_pod
from k8s.check.strict_yaml import Document

__all__ = ["Pod", "cluster_of", "container_ports", "containers", "effective_pods", "name_of", "namespace_of", "title"]

_RANDOM = "x0x0x"
"""Stands for what KubeRay and Jobs append to names: whoever relies on the name without it finds nothing, as in a cluster."""
_CLUSTER_FIELD = {"RayCluster": "spec", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}


def name_of(document: Mapping[str, Any]) -> str:
    """Name of an object; that of a generated one without its end."""
    metadata = document.get("metadata") or {}
    return str(metadata.get("name") or str(metadata.get("generateName", "")).rstrip("-"))


def namespace_of(document: Mapping[str, Any]) -> str:
    """Namespace of an object."""
    return str((document.get("metadata") or {}).get("namespace") or "default")


def title(document: Mapping[str, Any]) -> str:
    """Kind and name: "Service/mlflow"."""
    return f"{document.get('kind')}/{name_of(document)}"


def cluster_of(document: Mapping[str, Any]) -> RayCluster | None:
    """The Ray cluster that an object asks for; None where it asks for none, or runs on another's."""
    kind = document.get("kind", "")
    if kind not in _CLUSTER_FIELD or not str(document.get("apiVersion")).startswith("ray.io/"):
        return None
    spec = document["spec"] if kind == "RayCluster" else document["spec"].get(_CLUSTER_FIELD[kind])
    if not spec:
        return None
    name = name_of(document)
    return RayCluster(
        name=name if kind == "RayCluster" else f"{name}-{_RANDOM}", stem=name, namespace=namespace_of(document), kind=kind,
        owner=title(document), spec=spec, document=document,
    )  # fmt: skip


def effective_pods(documents: Iterable[Document]) -> list[Pod]:
    """Return the pods that documents lead to, in their order; several equal ones are one with `replicas`."""
    return [pod for document in documents for pod in _pods_of(document)]


def _pods_of(document: Document) -> Iterator[Pod]:
    cluster = cluster_of(document)
    if cluster:
        yield from pods_of_cluster(cluster)
        submitter = submitter_pod(document, cluster) if document["kind"] == "RayJob" else None
        if submitter:
            yield submitter
    elif document.get("kind") in _WORKLOADS:
        yield _WORKLOADS[document["kind"]](document)


def _plain(document: Document, template: Mapping[str, Any], replicas: int, extra: Mapping[str, str] | None = None) -> Pod:
    metadata = template.get("metadata") or {}
    return Pod(
        name=name_of(document), namespace=namespace_of(document), owner=title(document), role="pod",
        labels={**(metadata.get("labels") or {}), **(extra or {})}, annotations=metadata.get("annotations") or {},
        spec=copy.deepcopy(template["spec"]), replicas=replicas, document=document,
    )  # fmt: skip


def _job_labels(name: str) -> dict[str, str]:
    return {"batch.kubernetes.io/job-name": name, "job-name": name}


def _bare(document: Document) -> Pod:
    return _plain(document, document, 1)


def _deployment(document: Document) -> Pod:
    return _plain(document, document["spec"]["template"], document["spec"].get("replicas", 1))


def _stateful_set(document: Document) -> Pod:
    """A StatefulSet's pods: each claim template is a volume of its name."""
    pod = _plain(
        document, document["spec"]["template"], document["spec"].get("replicas", 1), {"apps.kubernetes.io/pod-index": "0"}
    )
    claims = [template["metadata"]["name"] for template in document["spec"].get("volumeClaimTemplates") or []]
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": f"{claim}-{pod.name}-0"}} for claim in claims]
    return Pod(**{**vars(pod), "spec": {**pod.spec, "volumes": [*(pod.spec.get("volumes") or []), *volumes]}})


def _job(document: Document) -> Pod:
    return _plain(document, document["spec"]["template"], document["spec"].get("parallelism", 1), _job_labels(name_of(document)))


def _cron_job(document: Document) -> Pod:
    return _plain(document, document["spec"]["jobTemplate"]["spec"]["template"], 1, _job_labels(f"{name_of(document)}-{_RANDOM}"))


_WORKLOADS: dict[str, Callable[[Document], Pod]] = {
    "Pod": _bare,
    "Deployment": _deployment,
    "ReplicaSet": _deployment,
    "DaemonSet": _deployment,
    "StatefulSet": _stateful_set,
    "Job": _job,
    "CronJob": _cron_job,
}
