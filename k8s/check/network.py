"""NetworkPolicies, evaluated as Kubernetes defines them: who may speak to whom.

A pod that no policy of a direction selects is open in that direction. One that is selected accepts what any rule of any of
those policies allows, and nothing else. A connection needs the consent of both ends: egress of the source, ingress of the
destination. Replies, a pod's own traffic, and probes of the kubelet are always let through.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from grun.errors import ConfigError
from k8s.check.pod import Pod, container_ports
from k8s.check.pods import effective_pods, name_of, namespace_of
from k8s.check.selectors import selects
from k8s.check.strict_yaml import Document

__all__ = ["POD_ADDRESS", "Address", "Allowance", "Block", "Network", "PortRange", "allowed"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
End = Pod | Address | str
"""A pod, its name, or an address outside the cluster (as text too)."""
Direction = Literal["ingress", "egress"]
POD_ADDRESS = ipaddress.ip_address("10.244.0.1")
"""Where a pod is taken to be when a rule speaks of addresses and none was given."""
_NAME_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Block:
    """Addresses: a range without others inside it."""

    cidr: str
    without: tuple[str, ...] = ()

    def __contains__(self, address: object) -> bool:
        return address in ipaddress.ip_network(self.cidr) and not any(
            address in ipaddress.ip_network(part) for part in self.without
        )


@dataclass(frozen=True)
class PortRange:
    """Ports from `first` to `last`, both included."""

    first: int
    last: int
    protocol: str


@dataclass(frozen=True)
class Allowance:
    """What one rule of one policy lets through for one pod, resolved: sources of ingress, or destinations of egress."""

    policy: str
    anybody: bool
    """Whether the rule names no peers at all."""
    pods: tuple[Pod, ...]
    """The pods that the rule's selectors find."""
    blocks: tuple[Block, ...]
    ports: tuple[PortRange, ...] | None
    """None: all ports of all protocols. Of egress to named ports: those that the pods give these names."""


class Network:
    """The pods and policies of a set of documents."""

    def __init__(
        self, documents: Iterable[Document], strangers: Iterable[Pod] = (), addresses: Mapping[str, str] | None = None
    ) -> None:
        """Read the documents.

        Args:
            documents: rendered documents.
            strangers: pods of others, as of Prometheus or DNS.
            addresses: address of each pod by name, where rules about addresses are to be met exactly.
        """
        documents = list(documents)
        self.pods = {pod.name: pod for pod in (*effective_pods(documents), *strangers)}
        self._policies = [document for document in documents if document.get("kind") == "NetworkPolicy"]
        self._addresses = {name: ipaddress.ip_address(text) for name, text in (addresses or {}).items()}
        self._namespaces = {
            name_of(document): document["metadata"].get("labels") or {}
            for document in documents
            if document.get("kind") == "Namespace"
        }

    def allowed(self, source: End, destination: End, port: int, protocol: str = "TCP") -> bool:
        """Whether a connection may be made to a port.

        Raises:
            ConfigError: a name is no pod's.
        """
        start, end = self._end(source), self._end(destination)
        if start == end:
            return True
        return self._consents("egress", start, end, end, port, protocol) and self._consents(
            "ingress", end, start, end, port, protocol
        )

    def ingress(self, pod: Pod | str) -> list[Allowance] | None:
        """What may reach a pod; None where everything may."""
        return self._allowances("ingress", pod)

    def egress(self, pod: Pod | str) -> list[Allowance] | None:
        """What a pod may reach; None where that is everything."""
        return self._allowances("egress", pod)

    def policies_of(self, direction: Direction, pod: Pod) -> Iterator[Document]:
        """The policies that select a pod for a direction."""
        for policy in self._policies:
            spec = policy["spec"]
            types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
            concerns = direction.capitalize() in types and namespace_of(policy) == pod.namespace
            if concerns and selects(spec.get("podSelector") or {}, pod.labels):
                yield policy

    def _end(self, end: End) -> Pod | Address:
        if not isinstance(end, str):
            return end
        if end in self.pods:
            return self.pods[end]
        try:
            return ipaddress.ip_address(end)
        except ValueError:
            raise ConfigError(
                f"an end of a connection must be a pod or an address, got {end!r}; pods are {', '.join(self.pods)}"
            ) from None

    def _consents(
        self, direction: Direction, own: Pod | Address, other: Pod | Address, server: Pod | Address, port: int, protocol: str
    ) -> bool:
        if not isinstance(own, Pod):
            return True
        policies = list(self.policies_of(direction, own))
        rules = [(policy, rule) for policy in policies for rule in policy["spec"].get(direction) or []]
        return not policies or any(
            self._has_peer(policy, rule, direction, other) and _has_port(rule, server, port, protocol) for policy, rule in rules
        )

    def _has_peer(self, policy: Document, rule: Mapping[str, Any], direction: Direction, other: Pod | Address) -> bool:
        peers = _peers(rule, direction)
        return not peers or any(self._is_peer(policy, peer, other) for peer in peers)

    def _is_peer(self, policy: Document, peer: Mapping[str, Any], other: Pod | Address) -> bool:
        if "ipBlock" in peer:
            address = self._addresses.get(other.name, POD_ADDRESS) if isinstance(other, Pod) else other
            return address in _block(peer)
        if not isinstance(other, Pod):
            return False
        if peer.get("namespaceSelector") is None:
            at_home = other.namespace == namespace_of(policy)
        else:
            labels = {**self._namespaces.get(other.namespace, {}), _NAME_LABEL: other.namespace}
            at_home = selects(peer["namespaceSelector"], labels)
        return at_home and selects(peer.get("podSelector") or {}, other.labels)

    def _allowances(self, direction: Direction, pod: Pod | str) -> list[Allowance] | None:
        own = self._end(pod)
        if not isinstance(own, Pod):
            raise ConfigError(f"allowances belong to pods, got {pod!r}; name one of {', '.join(self.pods)}")
        policies = list(self.policies_of(direction, own))
        if not policies:
            return None
        rules = [(policy, rule) for policy in policies for rule in policy["spec"].get(direction) or []]
        return [self._allowance(policy, rule, direction, own) for policy, rule in rules]

    def _allowance(self, policy: Document, rule: Mapping[str, Any], direction: Direction, own: Pod) -> Allowance:
        peers = _peers(rule, direction)
        pods = tuple(
            pod for pod in self.pods.values() if any("ipBlock" not in peer and self._is_peer(policy, peer, pod) for peer in peers)
        )
        blocks = tuple(_block(peer) for peer in peers if "ipBlock" in peer)
        servers = (own,) if direction == "ingress" else pods
        ports = {part for port in rule.get("ports") or [] for part in _ranges(port, servers)}
        ordered = tuple(sorted(ports, key=lambda part: (part.protocol, part.first))) if rule.get("ports") else None
        return Allowance(name_of(policy), not peers, pods, blocks, ordered)


def _peers(rule: Mapping[str, Any], direction: Direction) -> list[dict[str, Any]]:
    return rule.get("from" if direction == "ingress" else "to") or []


def _block(peer: Mapping[str, Any]) -> Block:
    return Block(peer["ipBlock"]["cidr"], tuple(peer["ipBlock"].get("except") or ()))


def _ranges(port: Mapping[str, Any], servers: Iterable[Pod]) -> Iterator[PortRange]:
    """The numbers of a rule's port; a name is looked up in the pods that are connected to."""
    protocol, number = port.get("protocol", "TCP"), port.get("port")
    if number is None:
        yield PortRange(1, 65535, protocol)
    elif isinstance(number, int):
        yield PortRange(number, port.get("endPort", number), protocol)
    else:
        found = {n for pod in servers for name, n, kind in container_ports(pod) if (name, kind) == (number, protocol)}
        yield from (PortRange(n, n, protocol) for n in found)


def _has_port(rule: Mapping[str, Any], server: Pod | Address, number: int, protocol: str) -> bool:
    servers = [server] if isinstance(server, Pod) else []
    ranges = [part for port in rule.get("ports") or [] for part in _ranges(port, servers)]
    return not rule.get("ports") or any(part.protocol == protocol and part.first <= number <= part.last for part in ranges)


def allowed(documents: Iterable[Document], source: End, destination: End, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies among the documents allow a connection; see :class:`Network` for many of them."""
    return Network(documents).allowed(source, destination, port, protocol)
