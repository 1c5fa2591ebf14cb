"""NetworkPolicies as nftables rules: one ruleset for each pod, loaded in its own namespace."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.k8s.nodes.manifests import Documents, matches
from tests.k8s.nodes.services import Endpoint, resolve_port

__all__ = ["ruleset"]


def ruleset(documents: Documents, pods: Sequence[Endpoint], own: Endpoint) -> str:
    """The ruleset of a pod under the policies that select it; it replaces an earlier one in one transaction.

    A pod that no policy selects for a direction is open in it; one that is selected lets in (or out) what any policy names.
    """
    selecting = [
        policy["spec"]
        for policy in documents.kind("NetworkPolicy", own.namespace)
        if matches(policy["spec"].get("podSelector"), own.labels)
    ]
    lines = ["table inet policies", "delete table inet policies", "table inet policies {"]
    for direction, hook, side, peers in (("Ingress", "input", "saddr", "from"), ("Egress", "output", "daddr", "to")):
        isolating = [spec for spec in selecting if direction in _types(spec)]
        policy = "drop" if isolating else "accept"
        lines.append(f"  chain {hook} {{\n    type filter hook {hook} priority 0; policy {policy};")
        lines.append(f"    {'iif' if hook == 'input' else 'oif'} lo accept\n    ct state established,related accept")
        for spec in isolating:
            for rule in spec.get(direction.lower()) or ():
                lines += [f"    {line}" for line in _rule(rule, rule.get(peers), side, documents, pods, own)]
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def _types(spec: Mapping[str, Any]) -> Sequence[str]:
    default = ["Ingress", "Egress"] if "egress" in spec else ["Ingress"]
    return spec.get("policyTypes") or default


def _rule(
    rule: Mapping[str, Any],
    peers: Sequence[Mapping[str, Any]] | None,
    side: str,
    documents: Documents,
    pods: Sequence[Endpoint],
    own: Endpoint,
) -> list[str]:
    """The lines of one rule: any of its peers at any of its ports. Without peers it is for everybody, without ports for all."""
    sources = [_address(block, side) for block in _blocks(peers)] if peers else [""]
    found = [pod for peer in peers or () for pod in pods if _is_peer(peer, pod, documents, own)]
    # a port that is named has the number that the pod at the receiving end gives it
    lines = []
    for port in rule.get("ports") or [None]:
        wide = [f"{source} {_port(port, own)}" for source in sources if not _is_named(port) or side == "saddr"]
        narrow = [f"ip {side} {pod.address} {_port(port, own if side == 'saddr' else pod)}" for pod in found]
        lines += [f"{line} accept".strip() for line in (*wide, *narrow) if "none" not in line.split()]
    return lines


def _blocks(peers: Iterable[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    return [peer["ipBlock"] for peer in peers or () if "ipBlock" in peer]


def _address(block: Mapping[str, Any], side: str) -> str:
    excepted = ", ".join(block.get("except") or ())
    return f"ip {side} {block['cidr']}" + (f" ip {side} != {{ {excepted} }}" if excepted else "")


def _is_peer(peer: Mapping[str, Any], pod: Endpoint, documents: Documents, own: Endpoint) -> bool:
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        inside = matches(peer["namespaceSelector"], documents.namespace_labels(pod.namespace))
    else:
        inside = pod.namespace == own.namespace
    return inside and ("podSelector" not in peer or matches(peer["podSelector"], pod.labels))


def _is_named(port: Mapping[str, Any] | None) -> bool:
    return port is not None and isinstance(port.get("port"), str)


def _port(port: Mapping[str, Any] | None, receiver: Endpoint) -> str:
    """What matches a port of a policy at the pod that receives; `none` where it has no port of that name."""
    if port is None:
        return ""
    protocol = str(port.get("protocol", "TCP")).lower()
    if "port" not in port:
        return f"meta l4proto {protocol}"
    number = resolve_port(port["port"], receiver.spec)
    if number is None:
        return "none"
    return f"{protocol} dport {number}" + (f"-{port['endPort']}" if "endPort" in port else "")
