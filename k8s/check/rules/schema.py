"""Every object is what its kind allows."""

import functools
import ipaddress
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from k8s.check.bundle import Bundle
from k8s.check.crds import custom_kind
from k8s.check.other_kinds import UNCHECKED, other_kind
from k8s.check.pods import title
from k8s.check.ray_kinds import ray_kind
from k8s.check.rule import Wrong, table
from k8s.check.schemas import core_errors, is_core, pod_errors
from k8s.check.strict_yaml import Document

__all__ = ["RULES", "SHAPES", "VALUES"]

_REMEDY = "mend the field"


# the same objects are looked at once for every seeded mistake elsewhere, so answers are kept
@functools.lru_cache(maxsize=4096)
def _core(text: str, version: str) -> tuple[str, ...]:
    return tuple(core_errors(json.loads(text), version))


@functools.lru_cache(maxsize=4096)
def _ray(text: str, folder: Path | None) -> tuple[str, ...]:
    document = json.loads(text)
    api_version, name = document["apiVersion"], document["kind"]
    kind = custom_kind(folder, api_version, name) if folder else ray_kind(api_version, name)
    return ("the object: no such kind or version",) if kind is None else tuple(kind.errors(document))


def _is_ray(document: Document) -> bool:
    return str(document.get("apiVersion")).startswith("ray.io/")


def core_schema(bundle: Bundle) -> Wrong:
    """An API server refuses, or drops, what the schema of the release does not have."""
    version = bundle.version("kubernetes")
    for document in bundle.documents:
        if is_core(document, version):
            for error in _core(json.dumps(document), version):
                yield title(document), f"must be as Kubernetes {version} has it, got {error}; {_REMEDY}"


def ray_schema(bundle: Bundle) -> Wrong:
    """KubeRay's kinds, by the definitions that KUBERAY_CRDS names; without them only the names and types of KubeRay's own fields."""
    for document in bundle.documents:
        if _is_ray(document):
            for error in _ray(json.dumps(document), bundle.crds):
                yield title(document), f"must be as KubeRay {bundle.version('kuberay')} has it, got {error}; {_REMEDY}"


def other_schema(bundle: Bundle) -> Wrong:
    """Kinds of others that are shipped have a small schema here, of the fields in use; a kind that nobody knows is a misspelt one."""
    version = bundle.version("kubernetes")
    for document in bundle.documents:
        known = f"{document.get('apiVersion')}/{document.get('kind')}"
        if is_core(document, version) or _is_ray(document) or known in UNCHECKED:
            continue
        kind = other_kind(known)
        if kind is None:
            yield (
                title(document),
                f"a kind must be known to a schema, got {known}; correct it, or write its fields into k8s/check/other_kinds.py",
            )
        else:
            for error in kind.errors(document):
                yield title(document), f"must be as {known} has it, got {error}; {_REMEDY}"


def pod_schema(bundle: Bundle) -> Wrong:
    """What controllers make of a template has to be a pod, too: a template inside a custom kind is checked by nobody else."""
    version = bundle.version("kubernetes")
    for pod in bundle.pods:
        if "template" in str(pod.document.get("spec")) and not is_core(pod.document, version):
            for error in pod_errors(pod, version):
                yield (
                    f"{pod.owner} {pod.name}",
                    f"an effective pod must be as Kubernetes {version} has it, got {error}; {_REMEDY}",
                )


def _block_errors(block: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with an `ipBlock`, as "value: why"."""
    texts = [str(block.get("cidr")), *map(str, block.get("except") or [])]
    networks = []
    for text in texts:
        try:
            if "/" not in text:
                raise ValueError("it has no mask; a single address is written with /32, or /128")
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            yield f"{text!r} ({error})"
    if len(networks) == len(texts):
        whole, *parts = networks
        for part in parts:
            inside = part.version == whole.version and part.prefixlen > whole.prefixlen and part.overlaps(whole)
            if not inside:
                yield f"'{part}' in `except` (it is not a part of {whole})"


def address_blocks(bundle: Bundle) -> Wrong:
    """An address block of a policy is a network with its mask, and its exceptions lie inside: a server refuses others, or warns."""
    for policy in bundle.of("NetworkPolicy"):
        spec = policy.get("spec") or {}
        peers = [
            peer
            for direction, end in (("ingress", "from"), ("egress", "to"))
            for rule in spec.get(direction) or []
            for peer in rule.get(end) or []
        ]
        for block in (peer["ipBlock"] for peer in peers if peer.get("ipBlock")):
            for error in _block_errors(block):
                yield title(policy), f"an ipBlock must be a network with its mask, as 10.0.0.0/8, got {error}; correct it"


SHAPES = table(core_schema, ray_schema, other_schema)
"""What has to hold before anything else can be asked."""
VALUES = table(address_blocks)
"""What has to hold, besides, before policies can be asked."""
RULES = (*SHAPES, *VALUES, *table(pod_schema))
