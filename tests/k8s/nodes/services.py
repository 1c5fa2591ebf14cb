"""Services as the pods see them: names in `/etc/hosts`, and the variables of service links."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tests.k8s.nodes.manifests import DOMAIN, UnsupportedError

__all__ = ["Endpoint", "hosts_file", "resolve_port", "service_links", "service_names"]


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


def service_names(name: str, namespace: str, *, of: str) -> list[str]:
    """The names by which a Service is known to a pod of a namespace."""
    full = [f"{name}.{namespace}.svc.{DOMAIN}", f"{name}.{namespace}.svc", f"{name}.{namespace}"]
    return [*full, name] if of == namespace else full


def hosts_file(services: Iterable[Mapping[str, Any]], pods: Iterable[Endpoint], own: Endpoint) -> str:
    """The lines of a pod's `/etc/hosts`: itself, and every Service that a running pod stands behind."""
    lines = ["127.0.0.1\tlocalhost", f"{own.address}\t{own.name}"]
    pods = list(pods)
    for service in services:
        backend = _backend(service, pods)
        if backend is not None:
            meta = service["metadata"]
            names = " ".join(service_names(meta["name"], meta["namespace"], of=own.namespace))
            lines.append(f"{backend.address}\t{names}")
    return "\n".join(lines) + "\n"


def _backend(service: Mapping[str, Any], pods: list[Endpoint]) -> Endpoint | None:
    """The pod behind a Service: the newest, where one is on its way out."""
    meta, spec = service["metadata"], service["spec"]
    selector = spec.get("selector")
    if not selector:
        return None
    behind = [p for p in pods if p.namespace == meta["namespace"] and selector.items() <= p.labels.items()]
    if not behind:
        return None
    for port in spec.get("ports") or ():
        target = resolve_port(port.get("targetPort", port["port"]), behind[-1].spec)
        if target != port["port"]:
            raise UnsupportedError(
                f"Service {meta['name']} maps port {port['port']} to {target}; here its name is the pod's address"
            )
    return behind[-1]


def resolve_port(port: int | str, spec: Mapping[str, Any]) -> int | None:
    """The number of a port that may be named; None where no container names it."""
    if isinstance(port, int):
        return port
    ports = (p for container in spec["containers"] for p in container.get("ports") or ())
    return next((int(p["containerPort"]) for p in ports if p.get("name") == port), None)


@dataclass(frozen=True)
class _Link:
    prefix: str
    address: str
    port: Mapping[str, Any]

    def variables(self) -> dict[str, str]:
        number, protocol = self.port["port"], self.port.get("protocol", "TCP")
        url = f"{protocol.lower()}://{self.address}:{number}"
        one = f"{self.prefix}_PORT_{number}_{protocol}"
        parts = {"": url, "_PROTO": protocol.lower(), "_PORT": str(number), "_ADDR": self.address}
        return {f"{one}{part}": value for part, value in parts.items()}


def service_links(services: Iterable[Mapping[str, Any]], pods: Iterable[Endpoint], namespace: str) -> dict[str, str]:
    """The variables that a kubelet adds for the Services of a pod's namespace, unless `enableServiceLinks` is false.

    They are old, and a trap: a Service named `mlflow` makes a variable `MLFLOW_PORT`, which `mlflow server` reads.
    """
    found: dict[str, str] = {}
    pods = list(pods)
    for service in services:
        meta, spec = service["metadata"], service["spec"]
        if meta["namespace"] != namespace or spec.get("clusterIP") == "None" or not spec.get("ports"):
            continue
        backend = _backend(service, pods)
        # the address of a Service is there before its pod is; nothing listens on this one
        address = backend.address if backend is not None else "10.96.0.1"
        prefix = meta["name"].upper().replace("-", "_")
        first = spec["ports"][0]
        found |= {f"{prefix}_SERVICE_HOST": address, f"{prefix}_SERVICE_PORT": str(first["port"])}
        found[f"{prefix}_PORT"] = f"{first.get('protocol', 'TCP').lower()}://{address}:{first['port']}"
        for port in spec["ports"]:
            if port.get("name"):
                found[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
            found |= _Link(prefix, address, port).variables()
    return found
