"""Services as the pods see them: names in `/etc/hosts`, and the variables of service links."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from k8s.check.services import Service, ServicePort
from tests.k8s.nodes.manifests import UnsupportedError

__all__ = ["Endpoint", "hosts_file", "resolve_port", "service_links"]

_NOWHERE = "10.96.0.1"
"""Address of a Service whose pod is not there yet; nothing listens on it."""


class Endpoint(Protocol):
    """A pod that may stand behind a Service."""

    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def address(self) -> str: ...
    @property
    def spec(self) -> Mapping[str, Any]: ...


def hosts_file(services: Iterable[Service], pods: Sequence[Endpoint], own: Endpoint) -> str:
    """The lines of a pod's `/etc/hosts`: itself, and every Service that a pod stands behind."""
    lines = ["127.0.0.1\tlocalhost", f"{own.address}\t{own.name}"]
    for service in services:
        backend = _backend(service, pods)
        if backend is not None:
            # the first name is the shortest, which leads to it from its own namespace only
            names = service.hosts if service.namespace == own.namespace else service.hosts[1:]
            lines.append(f"{backend.address}\t{' '.join(names)}")
    return "\n".join(lines) + "\n"


def _backend(service: Service, pods: Sequence[Endpoint]) -> Endpoint | None:
    """The pod behind a Service: the newest, where one is on its way out."""
    behind = [p for p in pods if p.namespace == service.namespace and service.selector.items() <= p.labels.items()]
    if not (service.selector and behind):
        return None
    for port in service.ports:
        target = resolve_port(port.target, behind[-1].spec)
        if target != port.number:
            raise UnsupportedError(
                f"Service {service.name} maps port {port.number} to {target}; here its name is the pod's address"
            )
    return behind[-1]


def resolve_port(port: int | str, spec: Mapping[str, Any]) -> int | None:
    """The number of a port that may be named; None where no container names it."""
    if isinstance(port, int):
        return port
    ports = (p for container in spec["containers"] for p in container.get("ports") or ())
    return next((int(p["containerPort"]) for p in ports if p.get("name") == port), None)


def service_links(services: Iterable[Service], pods: Sequence[Endpoint], namespace: str) -> dict[str, str]:
    """The variables that a kubelet adds for the Services of a pod's namespace, unless `enableServiceLinks` is false.

    They are old, and a trap: a Service named `mlflow` makes a variable `MLFLOW_PORT`, which `mlflow server` reads.
    """
    found: dict[str, str] = {}
    for service in services:
        if service.namespace != namespace or service.headless or not service.ports:
            continue
        backend = _backend(service, pods)
        address = backend.address if backend is not None else _NOWHERE
        prefix, first = _variable(service.name), service.ports[0]
        found |= {f"{prefix}_SERVICE_HOST": address, f"{prefix}_SERVICE_PORT": str(first.number)}
        found[f"{prefix}_PORT"] = _url(address, first)
        for port in service.ports:
            if port.name:
                found[f"{prefix}_SERVICE_PORT_{_variable(port.name)}"] = str(port.number)
            one = f"{prefix}_PORT_{port.number}_{port.protocol}"
            parts = {"": _url(address, port), "_PROTO": port.protocol.lower(), "_PORT": str(port.number), "_ADDR": address}
            found |= {f"{one}{part}": value for part, value in parts.items()}
    return found


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")


def _url(address: str, port: ServicePort) -> str:
    return f"{port.protocol.lower()}://{address}:{port.number}"
