"""What pods need of the rendered documents beside their own specification: ConfigMaps, Secrets, Services, namespaces."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Documents", "PodTemplate", "UnsupportedError", "matches"]


class UnsupportedError(Exception):
    """A manifest asks for something that would change what runs, and that nothing here honours."""


class PodTemplate(Protocol):
    """What is started; `k8s.check.pods.Pod` is one."""

    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def annotations(self) -> Mapping[str, str]: ...
    @property
    def spec(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Documents:
    """Rendered documents, by kind."""

    all: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, documents: Iterable[dict[str, Any]]) -> "Documents":
        """Take rendered documents."""
        return cls(tuple(documents))

    def kind(self, kind: str, namespace: str | None = None) -> list[dict[str, Any]]:
        """The documents of a kind, of one namespace or of all."""
        return [d for d in self.all if d.get("kind") == kind and namespace in (None, d["metadata"].get("namespace"))]

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """The document of a name; None where there is none."""
        return next((d for d in self.kind(kind, namespace) if d["metadata"]["name"] == name), None)

    def data(self, kind: str, namespace: str, name: str, *, optional: bool = False) -> dict[str, bytes]:
        """The entries of a ConfigMap or a Secret.

        Raises:
            LookupError: it is not there and not optional; a kubelet would not start the container either.
        """
        document = self.get(kind, namespace, name)
        if document is None:
            if optional:
                return {}
            raise LookupError(f"{kind} {namespace}/{name} must be rendered, or given beside the manifests")
        plain, encoded = ("data", "binaryData") if kind == "ConfigMap" else ("stringData", "data")
        decoded = {key: base64.b64decode(value) for key, value in (document.get(encoded) or {}).items()}
        return decoded | {key: str(value).encode() for key, value in (document.get(plain) or {}).items()}

    def namespace_labels(self, name: str) -> dict[str, str]:
        """Labels of a namespace, with the one that every namespace gets."""
        document = next((d for d in self.kind("Namespace") if d["metadata"]["name"] == name), None)
        labels = (document or {}).get("metadata", {}).get("labels") or {}
        return {**labels, "kubernetes.io/metadata.name": name}


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (`matchLabels`, `matchExpressions`) picks something; an empty one picks everything."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_expression(one, labels) for one in selector.get("matchExpressions") or ())


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values") or ()
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    raise UnsupportedError(f"a label selector knows In, NotIn, Exists and DoesNotExist, got {operator!r}")
