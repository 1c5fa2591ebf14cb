"""The commands that k8s/README.md tells people to give: the files, verbs, options and objects that they name exist."""

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from k8s.check.bundle import Bundle
from k8s.check.pods import name_of
from k8s.check.repository import Repository

__all__ = ["documentation_errors"]

_BLOCK = re.compile(r"^```(?:sh|bash|console|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PATH = re.compile(
    r"(?<![\w./:<-])((?:k8s|pipelines|tests|requirements|docs|grun)/[\w./-]*[\w/]|Containerfile|Makefile|requirements\.lock)"
)
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
_KINDS = {"svc": "service", "deploy": "deployment", "pvc": "persistentvolumeclaim", "cm": "configmap"}
_VERBS = frozenset({"get", "describe", "delete", "patch", "edit", "scale"})
_NAME = re.compile(r"[a-z][a-z0-9-]*\Z")


def documentation_errors(repository: Repository, bundles: Iterable[Bundle] | None = None) -> Iterator[tuple[str, str]]:
    """Place and message for everything in a shell block, and every link, that leads to nothing; objects only where bundles are given."""
    known = None if bundles is None else _objects(repository, bundles)
    for document in sorted((repository.root / "k8s").rglob("*.md")):
        text, name = document.read_text(encoding="utf-8"), str(document.relative_to(repository.root))
        for block in _BLOCK.findall(text):
            for path in sorted(set(_PATH.findall(block))):
                if not (repository.root / path).exists():
                    yield name, f"a command must name files that are there, got {path!r}; correct it"
            for line in block.replace("\\\n", " ").splitlines():
                words = _words(line)
                yield from ((name, message) for message in _scripts(words, repository))
                if known is not None:
                    yield from ((name, message) for message in _named(words, known))
        for link in sorted(set(_LINK.findall(text))):
            if not (document.parent / link).exists():
                yield name, f"a link must lead to a file, got {link!r}; correct it"


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a quotation over several lines
        return line.split()


def _objects(repository: Repository, bundles: Iterable[Bundle]) -> set[tuple[str, str]]:
    """Kind and name of everything that the manifests lead to."""
    found = {("secret", name) for name in repository.secrets}
    for bundle in bundles:
        found |= {(str(document.get("kind")).lower(), name_of(document)) for document in bundle.documents}
        found |= {("service", service.name) for service in bundle.services}
    return found


def _named(words: list[str], known: set[tuple[str, str]]) -> Iterator[str]:
    """Objects of a `kubectl` command that are not there, as kind/name or as names behind a verb and a kind."""
    if "kubectl" not in words:
        return
    kinds = {kind for kind, _ in known}
    asked = [tuple(word.split("/")) for word in words if word.count("/") == 1]
    at = next((index for index, word in enumerate(words) if word in _VERBS), len(words))
    behind = words[at + 1 :]
    for name in behind[1:]:
        if not _NAME.match(name):
            break
        asked.append((behind[0], name))
    for word, name in asked:
        kind = _KINDS.get(word, word.removesuffix("s") if word.removesuffix("s") in kinds else word)
        if kind in kinds and _NAME.match(name) and (kind, name) not in known:
            yield f"a command must name objects that are there, got {word}/{name}; correct it"


def _scripts(words: list[str], repository: Repository) -> Iterator[str]:
    """Verbs of ours with subcommands and options that they do not have."""
    for index, word in enumerate(words):
        path = repository.root / Path(word.removeprefix("/app/"))
        if (
            word.startswith("-")
            or path.parent != repository.root / "pipelines"
            or not path.is_file()
            or not repository.is_verb(path)
        ):
            continue
        subcommands, rest = repository.subcommands(path), words[index + 1 :]
        if subcommands and rest[:1] and rest[0] not in subcommands:
            yield f"{path.name} must be told one of {', '.join(sorted(subcommands))}, got {rest[0]!r}; correct it"
        for option in (part for part in rest if part.startswith("--") and len(part) > 2):
            if option[2:].partition("=")[0] not in repository.options(path):
                yield f"{path.name} must have the option, got {option!r}; correct it"
