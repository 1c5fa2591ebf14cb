"""The services of a namespace, KubeRay's own included, and the names by which they are found."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from k8s.check.kuberay import DOMAIN, RayCluster, identifier
from k8s.check.pod import Pod, container_ports
from k8s.check.pods import cluster_of, name_of, namespace_of, title
from k8s.check.strict_yaml import Document

__all__ = ["Service", "ServicePort", "backends", "find", "services", "target_of"]

_DEFAULT_HEAD_PORTS = {"client": 10001, "gcs-server": 6379, "dashboard": 8265, "metrics": 8080, "serve": 8000}


@dataclass(frozen=True)
class ServicePort:
    """A port of a service, and where it leads."""

    name: str
    number: int
    target: int | str
    """Number, or name of a container's port."""
    protocol: str = "TCP"


@dataclass(frozen=True)
class Service:
    """A service: a name in front of the pods that its selector finds."""

    name: str
    namespace: str
    owner: str
    """Kind and name of what makes it: "Service/mlflow", "RayCluster/unlearn"."""
    selector: Mapping[str, str]
    ports: tuple[ServicePort, ...]
    headless: bool = False

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names that lead to it, the shortest one from its own namespace only."""
        full = f"{self.name}.{self.namespace}"
        return self.name, full, f"{full}.svc", f"{full}.svc.{DOMAIN}"


def services(documents: Iterable[Document]) -> list[Service]:
    """Return the services that documents lead to."""
    found = []
    for document in documents:
        cluster = cluster_of(document)
        if cluster:
            found += _of_cluster(cluster)
        elif document.get("kind") == "Service":
            found.append(_written(document))
    return found


def _written(document: Document) -> Service:
    spec = document["spec"]
    ports = tuple(
        ServicePort(port.get("name", ""), port["port"], port.get("targetPort", port["port"]), port.get("protocol", "TCP"))
        for port in spec.get("ports") or []
    )
    return Service(
        name_of(document),
        namespace_of(document),
        title(document),
        spec.get("selector") or {},
        ports,
        spec.get("clusterIP") == "None",
    )


def _of_cluster(cluster: RayCluster) -> list[Service]:
    """A head service for every cluster; for a RayJob or a RayService one under its own name too, and one for Serve's proxies."""
    declared = cluster.spec["headGroupSpec"]["template"]["spec"]["containers"][0].get("ports") or []
    numbers = {port.get("name") or f"{port['containerPort']}-port": port["containerPort"] for port in declared} or dict(
        _DEFAULT_HEAD_PORTS
    )
    numbers.setdefault("metrics", 8080)
    ports = tuple(ServicePort(name, number, number) for name, number in sorted(numbers.items()))
    head = {
        "ray.io/cluster": cluster.name,
        "ray.io/node-type": "head",
        "ray.io/identifier": identifier(cluster.name, "head"),
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    found = [Service(cluster.head_service, cluster.namespace, cluster.owner, head, ports, headless=True)]
    if cluster.stem != cluster.name:
        found.append(Service(f"{cluster.stem}-head-svc", cluster.namespace, cluster.owner, head, ports, headless=True))
    if cluster.kind == "RayService":
        serve = tuple(port for port in ports if port.name == "serve")
        selector = {"ray.io/cluster": cluster.name, "ray.io/serve": "true"}
        found.append(Service(f"{cluster.stem}-serve-svc", cluster.namespace, cluster.owner, selector, serve))
    return found


def find(host: str, known: Iterable[Service], namespace: str) -> Service | None:
    """Return the service that a host name leads to from a pod of `namespace`."""
    for service in known:
        if host in service.hosts[1:] or (host == service.name and namespace == service.namespace):
            return service
    return None


def backends(service: Service, pods: Iterable[Pod]) -> list[Pod]:
    """Return the pods behind a service."""
    wanted = service.selector.items()
    return [pod for pod in pods if service.selector and pod.namespace == service.namespace and wanted <= dict(pod.labels).items()]


def target_of(port: ServicePort, pod: Pod) -> int | None:
    """Return the number of the container's port that a service's port leads to; None where the pod has no port of that name."""
    if isinstance(port.target, int):
        return port.target
    return next(
        (number for name, number, protocol in container_ports(pod) if name == port.target and protocol == port.protocol), None
    )
