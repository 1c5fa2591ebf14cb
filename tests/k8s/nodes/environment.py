"""The variables of a container, as a kubelet makes them."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from tests.k8s.nodes.manifests import Documents, UnsupportedError

__all__ = ["container_environment", "expand", "expand_all", "field_value", "quantity", "resource_value"]

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
_SUFFIXES = {"": Decimal(1), "m": Decimal("0.001")}
_SUFFIXES |= {suffix: Decimal(1000**power) for power, suffix in enumerate("kMGT", 1)}
_SUFFIXES |= {f"{suffix}i": Decimal(1024**power) for power, suffix in enumerate("KMGT", 1)}


def quantity(text: object) -> Decimal:
    """A Kubernetes quantity as a number: `500m`, `2`, `1Gi`."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if found is None or found[2] not in _SUFFIXES:
        raise UnsupportedError(f"a quantity must be a number with one of the suffixes {sorted(_SUFFIXES)}, got {text!r}")
    return Decimal(found[1]) * _SUFFIXES[found[2]]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Put values in the place of `$(NAME)`; what is not known stays as it is, and `$$` is a dollar sign."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return _REFERENCE.sub(value, text)


def field_value(path: str, fields: Mapping[str, Any]) -> str:
    """A field of the pod, by the path of a downward reference.

    Args:
        fields: `metadata.name` and the like; `metadata.labels` and `metadata.annotations` are mappings.
    """
    indexed = re.fullmatch(r"(metadata\.(?:labels|annotations))\['([^']+)'\]", path)
    if indexed:
        return str(fields[indexed[1]].get(indexed[2], ""))
    value = fields.get(path)
    if value is None:
        raise UnsupportedError(f"a pod here has the fields {sorted(fields)}, got {path!r}")
    if isinstance(value, Mapping):
        return "\n".join(f'{key}="{entry}"' for key, entry in sorted(value.items()))
    return str(value)


def resource_value(reference: Mapping[str, Any], containers: Mapping[str, Mapping[str, Any]], own: str) -> str:
    """A limit or a request of a container, in units of its divisor, rounded up as a kubelet does."""
    which, resource = reference["resource"].split(".", 1)
    given = containers[reference.get("containerName", own)].get("resources") or {}
    value = (given.get(which) or {}).get(resource)
    if value is None:
        raise UnsupportedError(f"a reference to `{reference['resource']}` needs the container to set it; else it is the node's")
    divisor = quantity(reference.get("divisor") or 1)
    return str(-int(-quantity(value) // divisor))


def container_environment(
    container: Mapping[str, Any],
    documents: Documents,
    namespace: str,
    *,
    image: Mapping[str, str],
    links: Mapping[str, str],
    fields: Mapping[str, Any],
    containers: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """All variables of a container: the image's, service links, `envFrom`, `env`; later ones win.

    Raises:
        LookupError: a ConfigMap, a Secret or a key of one is missing and not optional.
    """
    variables = dict(links)
    for source in container.get("envFrom") or ():
        variables |= _from_source(source, documents, namespace)
    for entry in container.get("env") or ():
        value = _value(entry, documents, namespace, fields, containers, container["name"], variables)
        if value is not None:
            variables[entry["name"]] = value
    # the image's own are the runtime's, so no reference sees them
    return {**image, **variables}


def _from_source(source: Mapping[str, Any], documents: Documents, namespace: str) -> dict[str, str]:
    prefix = source.get("prefix", "")
    for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
        if key in source:
            data = documents.data(kind, namespace, source[key]["name"], optional=source[key].get("optional", False))
            return {prefix + name: value.decode() for name, value in data.items()}
    raise UnsupportedError(f"`envFrom` knows configMapRef and secretRef, got {sorted(source)}")


def _value(
    entry: Mapping[str, Any],
    documents: Documents,
    namespace: str,
    fields: Mapping[str, Any],
    containers: Mapping[str, Mapping[str, Any]],
    own: str,
    variables: Mapping[str, str],
) -> str | None:
    source = entry.get("valueFrom")
    if source is None:
        return expand(str(entry.get("value", "")), variables)
    for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
        if key in source:
            reference = source[key]
            optional = reference.get("optional", False)
            data = documents.data(kind, namespace, reference["name"], optional=optional)
            if reference["key"] in data:
                return data[reference["key"]].decode()
            if optional:
                return None
            raise LookupError(
                f"{kind} {namespace}/{reference['name']} must hold the key {reference['key']!r}, got {sorted(data)}"
            )
    if "fieldRef" in source:
        return field_value(source["fieldRef"]["fieldPath"], fields)
    if "resourceFieldRef" in source:
        return resource_value(source["resourceFieldRef"], containers, own)
    raise UnsupportedError(f"`valueFrom` of {entry['name']} has the unknown source {sorted(source)}")


def expand_all(texts: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """Expand every argument of a command."""
    return [expand(str(text), variables) for text in texts]
