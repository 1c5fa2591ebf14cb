"""The addresses that pods are given: in variables, commands, hooks and recipes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from k8s.check.bundle import Bundle
from k8s.check.commands import expanded, recipes, words_of
from k8s.check.mounted import text_at
from k8s.check.pod import Pod
from k8s.check.variables import variables_of

__all__ = ["Address", "addresses"]

_URL = re.compile(r"\b[a-z][a-z0-9+]*://[^\s\"'`,)}\]]+")
_HOST_PORT = re.compile(r"([a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*):([0-9]{2,5})\Z")
_DEFAULTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A host and a port that a pod will connect to."""

    where: str
    pod: Pod
    host: str
    port: int


def _is_inside(host: str, namespace: str) -> bool:
    """Whether a name can only be a service's: it has no dots, or ends as services do."""
    local = host in ("localhost", "") or re.fullmatch(r"[0-9.]+", host)
    return not local and ("." not in host or host.endswith((".svc", ".svc.cluster.local", f".{namespace}")))


def _in_text(text: str) -> Iterator[tuple[str, int]]:
    for found in _URL.findall(text):
        parts = urlsplit(found)
        try:
            port = parts.port or _DEFAULTS.get(parts.scheme)
        except ValueError:
            continue
        if parts.hostname and port and parts.scheme in ("http", "https", "postgresql", "redis"):
            yield parts.hostname, port


def addresses(bundle: Bundle) -> Iterator[Address]:
    """Every address inside the cluster, once for each pod that is given it."""
    seen = set()
    for where, pod, text in _texts(bundle):
        exact = _HOST_PORT.match(text)
        found = [*_in_text(text), *([(exact.group(1), int(exact.group(2)))] if exact else [])]
        for host, port in found:
            if _is_inside(host, pod.namespace) and (pod.name, host, port) not in seen:
                seen.add((pod.name, host, port))
                yield Address(where, pod, host, port)


def _texts(bundle: Bundle) -> Iterator[tuple[str, Pod, str]]:
    for where, pod, container in bundle.containers:
        for name, value in variables_of(bundle, pod, container):
            if value and not name.startswith("KUBERAY_"):
                yield f"{where} env[{name}]", pod, value
        for word in words_of(container):
            option, _, rest = expanded(container, word).partition("=")
            yield where, pod, rest if option.startswith("--") and rest else f"{option}={rest}" if rest else option
    for where, path, pod, container in recipes(bundle, everybody=False):
        recipe = text_at(bundle, pod, container, path)
        if recipe:
            yield f"{where} {path}", pod, recipe
