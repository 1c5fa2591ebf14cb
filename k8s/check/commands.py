"""The commands of manifests, and where each of them runs: a submitter hands its command to the head of a Ray cluster."""

import functools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from k8s.check.bundle import Bundle
from k8s.check.kuberay import RayCluster
from k8s.check.pod import Container, Pod
from k8s.check.pods import cluster_of
from k8s.check.services import backends, find
from k8s.check.strict_yaml import Document

__all__ = ["Script", "applications", "expanded", "recipes", "scripts", "words_of"]

_INTERPRETERS = frozenset({"python", "python3", "bash", "sh", "/bin/bash", "/bin/sh"})
_ENDS = frozenset({";", "&&", "||", "|", "&", "fi"})
_LOCAL = frozenset({"cache.py"})
"""Verbs that read no more of a recipe than where its output folder is."""
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(frozen=True)
class Script:
    """A script that is run: its path, what follows it, and the container that it runs in."""

    where: str
    path: str
    arguments: tuple[str, ...]
    pod: Pod
    container: Container


def words_of(container: Container) -> list[str]:
    """Command and arguments of a container, and of its hooks and probes, in words; scripts for a shell are taken apart."""
    found = [*(container.get("command") or []), *(container.get("args") or [])]
    hooks = [
        *(container.get("lifecycle") or {}).values(),
        *(container.get(f"{name}Probe") or {} for name in ("startup", "readiness", "liveness")),
    ]
    for hook in hooks:
        found += [";", *((hook.get("exec") or {}).get("command") or [])]
    return [word for text in found for word in _split(str(text))]


@functools.cache
def _split(text: str) -> tuple[str, ...]:
    if not re.search(r"\s", text):
        return (text,)
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return tuple(text.split())


def expanded(container: Container, text: str) -> str:
    """A text with the container's own variables in place of `$(NAME)`, as the kubelet does it."""
    values = {variable["name"]: variable.get("value", "") for variable in container.get("env") or []}
    return _REFERENCE.sub(lambda found: values.get(found.group(1), found.group()), text)


def scripts(bundle: Bundle) -> Iterator[Script]:
    """Every script that a manifest has run by an interpreter."""
    for where, pod, container in bundle.containers:
        yield from _scripts(where, words_of(container), pod, container, bundle)
    for cluster in bundle.clusters:
        head = _head(bundle, cluster)
        if cluster.kind == "RayJob" and head:
            words = _split(str(cluster.document["spec"].get("entrypoint", "")))
            yield from _scripts(f"{cluster.owner} entrypoint", words, head, head.spec["containers"][0], bundle)


def _head(bundle: Bundle, cluster: RayCluster) -> Pod | None:
    return next((pod for pod in bundle.pods if pod.owner == cluster.owner and pod.role == "head"), None)


def _scripts(where: str, words: Sequence[str], pod: Pod, container: Container, bundle: Bundle) -> Iterator[Script]:
    index = 0
    while index + 1 < len(words):
        word, path = words[index], words[index + 1]
        index += 1
        if word not in _INTERPRETERS or not path.endswith((".py", ".sh")):
            continue
        ends = next((at for at in range(index + 1, len(words)) if words[at] in _ENDS | _INTERPRETERS), len(words))
        arguments = words[index + 1 : ends]
        # what stands behind a submitter's address runs where that leads
        before = " ".join(words[:index])
        target = (
            _submitted_to(bundle, pod, expanded(container, before)) if "ray job submit" in before or ".sh" in before else None
        )
        there = target or pod
        yield Script(where, path, tuple(arguments), there, there.spec["containers"][0] if target else container)


def _submitted_to(bundle: Bundle, pod: Pod, command: str) -> Pod | None:
    """The head that the address in a submitter's command leads to."""
    for address in re.findall(r"http://[^\s\"']+", command):
        service = find(urlsplit(address).hostname or "", bundle.services, pod.namespace)
        for found in backends(service, bundle.network.pods.values()) if service else []:
            if found.role == "head":
                return found
    return None


def recipes(bundle: Bundle, *, everybody: bool = True) -> Iterator[tuple[str, str, Pod, Container]]:
    """Every recipe that something is given: place, path or name, and the container that reads it; or of what loads and connects only."""
    for script in scripts(bundle):
        for option, value in zip(script.arguments, script.arguments[1:], strict=False):
            if option == "--recipe" and (everybody or PurePosixPath(script.path).name not in _LOCAL):
                yield script.where, value, script.pod, script.container
    for document in bundle.of("RayService"):
        cluster = cluster_of(document)
        pods = [pod for pod in bundle.pods if cluster and pod.owner == cluster.owner and pod.role == "worker"]
        for application in applications(document):
            arguments = application.get("args")
            recipe = arguments.get("recipe") if isinstance(arguments, dict) else None
            named = pods if isinstance(recipe, str) else []
            yield from ((f"{pod.owner} serveConfigV2", str(recipe), pod, pod.spec["containers"][0]) for pod in named)


def applications(service: Document) -> list[dict[str, Any]]:
    """The applications of a RayService; of a serveConfigV2 that is none, those parts that can be read."""
    try:
        config: Any = yaml.safe_load(service["spec"].get("serveConfigV2") or "{}")
    except yaml.YAMLError:
        return []  # a rule says so
    found = config.get("applications") if isinstance(config, dict) else None
    return [application for application in found if isinstance(application, dict)] if isinstance(found, list) else []
