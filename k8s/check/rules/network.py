"""Walls and doors: what has to be reached is reached, and nothing else."""

from collections.abc import Mapping
from typing import Any

from k8s.check.addresses import addresses
from k8s.check.bundle import STRANGERS, Bundle
from k8s.check.pod import Pod, container_ports
from k8s.check.pods import namespace_of, title
from k8s.check.rule import Wrong, table
from k8s.check.selectors import selects
from k8s.check.services import backends, find, target_of

__all__ = ["RULES"]

_OUTSIDE = "198.51.100.7"
"""An address of nobody, from the range for documentation."""
_INSIDE = "10.96.0.1"
_RANDOM_PORT = 34567
"""One of those that Ray picks as it likes."""


def denied_by_default(bundle: Bundle) -> Wrong:
    """What no policy speaks of is closed, in both directions."""
    for space in sorted({pod.namespace for pod in bundle.pods}):
        for direction in ("Ingress", "Egress"):
            policies = [d for d in bundle.everything if d.get("kind") == "NetworkPolicy" and namespace_of(d) == space]
            if not any(
                not policy["spec"].get("podSelector") and direction in (policy["spec"].get("policyTypes") or [])
                for policy in policies
            ):
                yield f"Namespace/{space}", f"{direction} must be denied by a policy for all pods, got none; write one"


def policies_find_pods(bundle: Bundle) -> Wrong:
    """A policy or a peer whose selector finds nobody is a misspelt label, or left over."""
    known = bundle.network.pods.values()
    for policy in bundle.of("NetworkPolicy"):
        space, spec = namespace_of(policy), policy["spec"]
        if not any(pod.namespace == space and selects(spec.get("podSelector") or {}, pod.labels) for pod in known):
            yield title(policy), f"a policy must find pods, got none for {spec.get('podSelector')}; correct the selector"
        for peer in _peers(policy):
            near = "podSelector" in peer and "namespaceSelector" not in peer
            if near and not any(pod.namespace == space and selects(peer["podSelector"], pod.labels) for pod in known):
                yield title(policy), f"a peer must find pods, got none for {peer['podSelector']}; correct the selector"


def _peers(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    spec = policy["spec"]
    rules = [(rule, "from") for rule in spec.get("ingress") or []] + [(rule, "to") for rule in spec.get("egress") or []]
    return [peer for rule, key in rules for peer in rule.get(key) or []]


def policies_open_real_ports(bundle: Bundle) -> Wrong:
    """A door where nobody listens is a port that has moved."""
    for policy in bundle.of("NetworkPolicy"):
        spec, space = policy["spec"], namespace_of(policy)
        pods = [
            pod
            for pod in bundle.network.pods.values()
            if pod.namespace == space and selects(spec.get("podSelector") or {}, pod.labels)
        ]
        declared = {part for pod in pods for name, number, _ in container_ports(pod) for part in (name, number)}
        for rule in spec.get("ingress") or []:
            for port in rule.get("ports") or []:
                if pods and "port" in port and port["port"] not in declared:
                    yield (
                        title(policy),
                        f"an open port must be declared by a container, got {port['port']!r}; declare it, or close it",
                    )


def addresses_lead_to_services(bundle: Bundle) -> Wrong:
    """A host name without a service behind it, or a port that the service does not have, is a client that never gets through."""
    for address in addresses(bundle):
        service = find(address.host, bundle.services, address.pod.namespace)
        if service is None:
            yield (
                address.where,
                f"an address must lead to a Service, got {address.host!r}; known: {', '.join(known.name for known in bundle.services)}",
            )
        elif address.port not in [port.number for port in service.ports]:
            yield (
                address.where,
                f"an address must have a port of its Service, got {address.host}:{address.port}; it has {[port.number for port in service.ports]}",
            )


def addresses_are_open(bundle: Bundle) -> Wrong:
    """Whoever is given an address is let through to it, by both ends' policies."""
    for address in addresses(bundle):
        service = find(address.host, bundle.services, address.pod.namespace)
        ports = [port for port in service.ports if port.number == address.port] if service else []
        for pod in backends(service, bundle.network.pods.values()) if service else []:
            for number in [target_of(port, pod) for port in ports]:
                if number and not bundle.network.allowed(address.pod, pod, number, "TCP"):
                    yield (
                        address.where,
                        f"policies must let {address.pod.name} through to {pod.name}:{number}, got no rule that does; add egress and ingress",
                    )


def names_can_be_resolved(bundle: Bundle) -> Wrong:
    """Without DNS no name leads anywhere."""
    dns = next(pod for pod in STRANGERS if pod.name == "kube-dns")
    for pod in bundle.pods:
        if not all(bundle.network.allowed(pod, dns, 53, protocol) for protocol in ("UDP", "TCP")):
            yield (
                f"{pod.owner} {pod.name}",
                "policies must let every pod ask DNS, got no rule that does; add egress to kube-dns, 53 UDP and TCP",
            )


def ray_nodes_reach_each_other(bundle: Bundle) -> Wrong:
    """Ray binds ports as it likes: between nodes of a cluster all are open."""
    for cluster in bundle.clusters:
        nodes = [pod for pod in bundle.pods if pod.owner == cluster.owner and pod.role in ("head", "worker")]
        for source in nodes:
            for target in nodes:
                if not bundle.network.allowed(source, target, _RANDOM_PORT):
                    yield (
                        cluster.owner,
                        f"policies must open all ports between nodes, got {source.name} kept from {target.name}; add a rule without ports",
                    )


def clusters_are_apart(bundle: Bundle) -> Wrong:
    """Jobs of one cluster do not reach into another: each runs what it is given."""
    nodes = [pod for pod in bundle.network.pods.values() if pod.role in ("head", "worker")]
    own = {cluster.owner for cluster in bundle.clusters}
    for source in nodes:
        for target in nodes:
            if source.owner != target.owner and target.owner in own and bundle.network.allowed(source, target, _RANDOM_PORT):
                yield (
                    target.owner,
                    f"policies must keep other clusters out, got {source.name} let through to {target.name}; narrow the peers",
                )


def strangers_stay_out(bundle: Bundle) -> Wrong:
    """A pod of nobody's, in this namespace or another, reaches nothing."""
    for pod in bundle.pods:
        near = Pod("unlabelled", pod.namespace, "Pod/unlabelled", "pod", {}, {}, {"containers": []})
        far = next(stranger for stranger in STRANGERS if stranger.name == "elsewhere")
        for stranger in (near, far):
            for name, number, protocol in container_ports(pod):
                if bundle.network.allowed(stranger, pod, number, protocol):
                    yield (
                        f"{pod.owner} {pod.name}",
                        f"policies must keep strangers out, got port {name or number} open to {stranger.name}; name peers",
                    )


def nothing_calls_out(bundle: Bundle) -> Wrong:
    """Weights come by one Job, and an autoscaler asks the Kubernetes API. Nothing else has business with the outside, or with the nodes."""
    for pod in bundle.pods:
        asks_api = any(container["name"] == "autoscaler" for container in pod.spec["containers"])
        if pod.service_account != "prefetch" and not asks_api:
            for address in (_OUTSIDE, _INSIDE):
                if bundle.network.allowed(pod, address, 443):
                    yield f"{pod.owner} {pod.name}", f"policies must keep a pod inside, got {address}:443 open; drop the rule"
        elif not asks_api and bundle.network.allowed(pod, "169.254.169.254", 443):
            yield (
                f"{pod.owner} {pod.name}",
                "policies must keep a pod from the cloud's metadata, got 169.254.169.254 open; add it to `except`",
            )


def operator_reaches_heads(bundle: Bundle) -> Wrong:
    """KubeRay asks the dashboard how jobs and applications are; kept out, it takes every job for lost."""
    operator = next(pod for pod in STRANGERS if pod.name == "kuberay-operator")
    for pod in (pod for pod in bundle.pods if pod.role == "head"):
        if not bundle.network.allowed(operator, pod, 8265):
            yield (
                f"{pod.owner} {pod.name}",
                "policies must let the operator ask the dashboard, got 8265 closed; add ingress from kuberay-system",
            )


RULES = table(
    denied_by_default, policies_find_pods, policies_open_real_ports, addresses_lead_to_services, addresses_are_open, names_can_be_resolved,
    ray_nodes_reach_each_other, clusters_are_apart, strangers_stay_out, nothing_calls_out, operator_reaches_heads,
)  # fmt: skip
