"""Every object is what its kind allows."""

import functools
import json
from pathlib import Path

from k8s.check.bundle import Bundle
from k8s.check.crds import custom_kind
from k8s.check.other_kinds import UNCHECKED, other_kind
from k8s.check.pods import title
from k8s.check.rule import Wrong, table
from k8s.check.schemas import core_errors, is_core, pod_errors
from k8s.check.strict_yaml import Document

__all__ = ["RULES", "SHAPES"]

_REMEDY = "mend the field"


# the same objects are looked at once for every seeded mistake elsewhere, so answers are kept
@functools.lru_cache(maxsize=4096)
def _core(text: str, version: str) -> tuple[str, ...]:
    return tuple(core_errors(json.loads(text), version))


@functools.lru_cache(maxsize=4096)
def _ray(text: str, folder: Path) -> tuple[str, ...]:
    document = json.loads(text)
    kind = custom_kind(folder, document["apiVersion"], document["kind"])
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
    """KubeRay's kinds, by the definitions that KUBERAY_CRDS names; without them this rule has nothing to say."""
    for document in bundle.documents:
        if _is_ray(document) and bundle.crds:
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


SHAPES = table(core_schema, ray_schema, other_schema)
"""What has to hold before anything else can be asked."""
RULES = (*SHAPES, *table(pod_schema))
