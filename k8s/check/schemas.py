"""Strict schemas of Kubernetes' own kinds, from the package `kubernetes-validate`: unknown fields and wrong types are errors.

Its own command stops at the first error of an object and lets kinds that it does not know pass; so its schemas are used, and
every error is told.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jsonschema
import kubernetes_validate.utils
from referencing import Registry, Resource

from k8s.check.pod import Pod

__all__ = ["core_errors", "is_core", "nearest", "pod_errors", "told"]


@functools.cache
def _definitions(version: str) -> Registry[Any]:
    contents = kubernetes_validate.utils.schema_contents(f"{_folder(version)}/_definitions.json", version)
    return Resource.from_contents(contents) @ Registry()


def _folder(version: str) -> str:
    return f"kubernetes-json-schema/v{version}.0-local-strict"


@functools.cache
def _validator(version: str, api_version: str, kind: str) -> Any:
    """The validator of a kind; None where the release has no such kind."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    try:
        schema = kubernetes_validate.utils.schema_contents(f"{_folder(version)}/{kind.lower()}-{group}.json", version)
    except FileNotFoundError:
        return None
    declared = schema.get("properties", {}).get("apiVersion", {}).get("enum", [api_version])
    if api_version not in declared:  # the file names leave domains out, so that any domain would do
        return None
    return jsonschema.Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions(version))


def is_core(document: Mapping[str, Any], version: str) -> bool:
    """Whether Kubernetes itself serves this kind in a release ("1.34")."""
    return _validator(version, str(document.get("apiVersion")), str(document.get("kind"))) is not None


def core_errors(document: Mapping[str, Any], version: str) -> Iterator[str]:
    """Everything that is wrong with an object of Kubernetes' own kinds, as "path: message"."""
    validator = _validator(version, str(document.get("apiVersion")), str(document.get("kind")))
    yield from (told(error) for error in validator.iter_errors(document))


def pod_errors(pod: Pod, version: str) -> Iterator[str]:
    """Everything that is wrong with an effective pod."""
    metadata = {"name": pod.name, "namespace": pod.namespace, "labels": dict(pod.labels), "annotations": dict(pod.annotations)}
    yield from core_errors({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}, version)


def nearest(name: str, known: Iterable[str]) -> str:
    """ ", did you mean ...?" where a known name is much like this one; nothing else."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _unknown_fields(error: Any) -> str | None:
    """Names that an object has and its schema has not; None where the error is about something else."""
    if error.validator != "additionalProperties" or error.validator_value is not False or not isinstance(error.instance, dict):
        return None
    known = error.schema.get("properties", {})
    unknown = [name for name in error.instance if name not in known]
    return "; ".join(f"unknown field {name!r}{nearest(name, known)}" for name in unknown)


def told(error: Any) -> str:
    """A validation error as "path: message", cut where it quotes a whole object."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    unknown = _unknown_fields(error)
    if unknown:
        return f"{path or 'the object'}: {unknown}"
    message = error.message if len(error.message) <= 200 else f"{error.message[:90]} ... {error.message[-100:]}"
    return f"{path or 'the object'}: {message}"
