"""CPU, memory, shared memory, scratch and GPUs."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from k8s.check.bundle import Bundle
from k8s.check.pod import Container, Pod
from k8s.check.quantities import quantity
from k8s.check.rule import Wrong, table

__all__ = ["RULES", "shared_memory"]

_STORE = re.compile(r"--object-store-memory=(\d+)")
_KUBERAYS = frozenset({"shared-mem", "ray-logs"})
"""Volumes that KubeRay adds; the size of the second is not ours to set."""


def _gpus(container: Mapping[str, Any], section: str) -> Any:
    resources = (container.get("resources") or {}).get(section) or {}
    return next((value for name, value in resources.items() if name.endswith("gpu")), None)


def shared_memory(pod: Pod, container: Container) -> Any:
    """Size of what a container has at /dev/shm; None where that is not limited."""
    names = [mount["name"] for mount in container.get("volumeMounts") or [] if mount["mountPath"] == "/dev/shm"]
    volumes = [volume for volume in pod.spec.get("volumes") or [] if volume["name"] in names]
    return next(
        (
            (volume.get("emptyDir") or {}).get("sizeLimit")
            for volume in volumes
            if (volume.get("emptyDir") or {}).get("medium") == "Memory"
        ),
        None,
    )


def _ray_containers(bundle: Bundle) -> Iterator[tuple[str, Pod, Container]]:
    for where, pod, container in bundle.containers:
        if pod.role in ("head", "worker") and container is pod.spec["containers"][0]:
            yield where, pod, container


def requests_and_limits(bundle: Bundle) -> Wrong:
    """A container without them takes what it finds, and in a namespace with a quota it is refused."""
    for where, _, container in bundle.containers:
        resources = container.get("resources") or {}
        missing = [
            f"{part}.{name}"
            for part in ("requests", "limits")
            for name in ("cpu", "memory")
            if name not in (resources.get(part) or {})
        ]
        if missing:
            yield where, f"requests and limits must name cpu and memory, got none for {', '.join(missing)}; write them"


def memory_is_reserved(bundle: Bundle) -> Wrong:
    """Memory that is only hoped for ends in a pod killed amid a job; KubeRay's default submitter has this mistake."""
    for where, _, container in bundle.containers:
        resources = container.get("resources") or {}
        request, limit = ((resources.get(part) or {}).get("memory") for part in ("requests", "limits"))
        if request and limit and quantity(request) != quantity(limit):
            yield where, f"the memory request must be the limit, got {request} and {limit}; make them one"


def object_store_fits(bundle: Bundle) -> Wrong:
    """A store larger than /dev/shm is moved to the disk with no more than a warning; unnamed, it is 30 % of the memory."""
    for where, pod, container in _ray_containers(bundle):
        found = _STORE.search(" ".join(container.get("args") or []))
        size = shared_memory(pod, container)
        if not found:
            yield where, "rayStartParams must name object-store-memory, got none; write it, below the size of /dev/shm"
        elif size is None or quantity(found.group(1)) > quantity(size):
            yield (
                where,
                f"object-store-memory must fit into /dev/shm, got {found.group(1)} bytes and {size}; lower it, or enlarge the volume",
            )


def shared_memory_is_memory(bundle: Bundle) -> Wrong:
    """What lies in /dev/shm counts as the pod's memory; half is left to processes."""
    for where, pod, container in _ray_containers(bundle):
        size = shared_memory(pod, container)
        limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
        if size and limit and quantity(size) * 2 > quantity(limit):
            yield where, f"/dev/shm must be at most half of the memory, got {size} of {limit}; lower it, or raise the limit"


def gpus_are_whole(bundle: Bundle) -> Wrong:
    """GPUs are given out whole, and a request is its limit."""
    for where, _, container in bundle.containers:
        limit, request = _gpus(container, "limits"), _gpus(container, "requests")
        if (limit or request) and (str(limit) != str(request or limit) or not str(limit).isdigit()):
            yield (
                where,
                f"GPUs must be a whole number, the same in limits and requests, got {limit!r} and {request!r}; correct them",
            )


def gpus_and_tolerations(bundle: Bundle) -> Wrong:
    """Nodes with GPUs are tainted: who needs one tolerates that, and nobody else, or he takes the place."""
    for pod in bundle.pods:
        wants = any(_gpus(container, "limits") for container in pod.spec["containers"])
        tolerates = any(str(toleration.get("key", "")).endswith("gpu") for toleration in pod.spec.get("tolerations") or [])
        if wants != tolerates:
            yield (
                f"{pod.owner} {pod.name}",
                f"a pod must tolerate GPU nodes if and only if it asks for GPUs, got GPUs: {wants}, toleration: {tolerates}; correct one",
            )


def head_does_no_work(bundle: Bundle) -> Wrong:
    """Tasks beside the driver and the GCS take the memory that both need; with `num-cpus: "0"` Ray places none there."""
    for cluster in bundle.clusters:
        if cluster.spec.get("workerGroupSpecs"):
            cpus = (cluster.spec["headGroupSpec"].get("rayStartParams") or {}).get("num-cpus")
            if cpus != "0":
                yield f"{cluster.owner} headGroupSpec", f'num-cpus of a head must be "0", got {cpus!r}; set it'


def scratch_is_limited(bundle: Bundle) -> Wrong:
    """An emptyDir without a limit fills its node."""
    for pod in bundle.pods:
        for volume in pod.spec.get("volumes") or []:
            if "emptyDir" in volume and volume["name"] not in _KUBERAYS and not (volume["emptyDir"] or {}).get("sizeLimit"):
                yield (
                    f"{pod.owner} {pod.name} volumes[{volume['name']}]",
                    "an emptyDir must have a sizeLimit, got none; write one",
                )


def spilling_is_limited(bundle: Bundle) -> Wrong:
    """What does not fit into the object store is spilled to the node's disk, and a full disk takes the node with it."""
    for where, _, container in _ray_containers(bundle):
        if "ephemeral-storage" not in ((container.get("resources") or {}).get("limits") or {}):
            yield where, "a Ray container must have a limit of ephemeral-storage, got none; write one"


RULES = table(
    requests_and_limits, memory_is_reserved, object_store_fits, shared_memory_is_memory, gpus_are_whole, gpus_and_tolerations, head_does_no_work,
    scratch_is_limited,
    spilling_is_limited,
)  # fmt: skip
