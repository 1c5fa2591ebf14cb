"""Where an object is written: the files that a kustomization puts together, by the objects they define or change."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grun.errors import ConfigError
from k8s.check.pods import name_of
from k8s.check.render import FILES
from k8s.check.strict_yaml import load_any

__all__ = ["files_of"]

_HASH = re.compile(r"-[a-z0-9]{10}\Z")
"""What Kustomize appends to the name of a generated ConfigMap."""
Part = tuple[str, str, Path]
"""Kind and name of an object, and a file that says something about it; an empty name stands for all of the kind."""


def files_of(title: str, folders: Iterable[Path]) -> list[Path]:
    """The files about an object ("Kind/name") of what is put together in some folders: its own first, then those that change it."""
    kind, _, name = title.partition("/")
    names = {"", name, _HASH.sub("", name)}
    found = [file for folder in folders for other, start, file in _parts(folder) if other == kind and start in names]
    return list(dict.fromkeys(found))


def _parts(folder: Path) -> Iterator[Part]:
    for path in (folder / name for name in FILES if (folder / name).is_file()):
        for document in _read(path):
            for entry in [*(document.get("resources") or []), *(document.get("components") or [])]:
                place = (folder / str(entry)).resolve()
                yield from _parts(place) if place.is_dir() else _defined(place)
            for generator in document.get("configMapGenerator") or []:
                files = [
                    str(file).rpartition("=")[2] for file in [*(generator.get("files") or []), *(generator.get("envs") or [])]
                ]
                yield from (
                    ("ConfigMap", str(generator.get("name")), file) for file in (path, *(folder / name for name in files))
                )
            for patch in document.get("patches") or []:
                yield from _patched(patch, path)


def _patched(patch: Mapping[str, Any], kustomization: Path) -> Iterator[Part]:
    """What a patch changes: its target, or without one the object that it looks like."""
    file = kustomization.parent / str(patch["path"]) if "path" in patch else kustomization
    target = patch.get("target") or {}
    if target.get("kind"):
        yield target["kind"], str(target.get("name") or ""), file
    elif "path" in patch:
        yield from _defined(file)


def _defined(path: Path) -> Iterator[Part]:
    yield from ((str(document.get("kind")), name_of(document), path) for document in _read(path))


def _read(path: Path) -> list[dict[str, Any]]:
    """The mappings of a file; none where it is not there or ambiguous, which is said elsewhere."""
    try:
        documents = load_any(path.read_text(encoding="utf-8"), where=path)
    except (OSError, UnicodeError, ConfigError):
        return []
    return [document for document in documents if isinstance(document, dict)]
