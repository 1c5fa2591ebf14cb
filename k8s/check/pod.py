"""A pod as it will run, and small things about its containers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Pod", "add_env", "container_ports", "containers"]

Container = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod after the controllers have done their part; several equal ones count as `replicas`.

    `name` is stable and unique among the documents it was made from: it says group and owner and leaves out what a cluster
    appends. `labels` are those that a selector meets.
    """

    name: str
    namespace: str
    owner: str
    """Kind and name of what makes it: "RayCluster/unlearn"."""
    role: Literal["head", "worker", "submitter", "pod"]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Mapping[str, Any]
    """A core/v1 PodSpec, complete: nothing is added to it any more but defaults of the API server."""
    replicas: int = 1
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The document that owns it."""

    @property
    def service_account(self) -> str:
        """Name of its ServiceAccount."""
        return str(self.spec.get("serviceAccountName") or "default")


def containers(pod: Pod) -> Iterator[tuple[str, Container]]:
    """All containers of a pod with their path in its spec, init containers first."""
    for section in ("initContainers", "containers"):
        for container in pod.spec.get(section) or []:
            yield f"{section}[{container['name']}]", container


def container_ports(pod: Pod) -> Iterator[tuple[str | None, int, str]]:
    """Name, number and protocol of every declared port of the running containers."""
    for container in pod.spec.get("containers") or []:
        for port in container.get("ports") or []:
            yield port.get("name"), port["containerPort"], port.get("protocol", "TCP")


def add_env(container: Container, **variables: str | Mapping[str, Any]) -> None:
    """Append environment variables that the container does not have yet; a mapping is a `valueFrom`."""
    present = container.setdefault("env", [])
    names = {variable["name"] for variable in present}
    for name, value in variables.items():
        if name not in names:
            present.append({"name": name, "value": value} if isinstance(value, str) else {"name": name, "valueFrom": dict(value)})
