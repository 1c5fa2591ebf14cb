"""Which folders are checked, what stands around each of them, and all the rules."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from grun.errors import ConfigError
from k8s.check.bundle import Bundle
from k8s.check.render import is_component, kustomizations, render, render_component
from k8s.check.repository import Repository
from k8s.check.rule import Finding, Rule
from k8s.check.rules import (
    availability,
    entrypoints,
    environment,
    images,
    monitoring,
    network,
    ray_clusters,
    ray_jobs,
    references,
    resources,
    schema,
    security,
)
from k8s.check.strict_yaml import Document, load, load_any

_FIRST = "local-cpu"
"""The overlay that components are checked on."""

__all__ = ["RULES", "bundles", "crds_folder", "findings", "folders_of", "source_errors"]

RULES: tuple[Rule, ...] = tuple(
    rule
    for module in (
        schema, ray_clusters, ray_jobs, security, resources, images, references, availability, entrypoints, environment, network, monitoring,
    )
    for rule in module.RULES
)  # fmt: skip


def findings(bundle: Bundle) -> list[Finding]:
    """What all rules find in a bundle; of objects that are not what their kind allows, only that."""
    for first in (schema.SHAPES, schema.VALUES):
        misshapen = [finding for rule in first for finding in rule.findings(bundle)]
        if misshapen:
            return misshapen
    try:
        return [finding for rule in RULES for finding in rule.findings(bundle)]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        if bundle.crds:
            raise
        # without the definitions nobody has looked at the shape of Ray's objects
        what = (
            f"objects must have the fields that their kind requires, got {error!r} on reading them; set KUBERAY_CRDS to see where"
        )
        return [Finding("ray-schema", bundle.name, "Ray's objects", what)]


def crds_folder() -> Path | None:
    """The folder that KUBERAY_CRDS names; None where it is not set.

    Raises:
        ConfigError: it names no folder.
    """
    named = os.environ.get("KUBERAY_CRDS")
    if not named:
        return None
    if not Path(named).is_dir():
        raise ConfigError(f"KUBERAY_CRDS must name a folder of CustomResourceDefinitions, got {named!r}; unset it to go without")
    return Path(named).resolve()


def bundles(folders: list[Path], repository: Repository) -> Iterator[Bundle]:
    """Render every kustomization at and below the folders, overlays first: what is wrong is wrong where it is applied.

    A folder inside an overlay is applied beside the others of that overlay; base and workloads beside each other; components
    on top of the first overlay. Folders of shared settings are components that all of these include, and are seen there.

    Raises:
        ConfigError: a folder holds no kustomization, or one cannot be rendered.
    """
    root = repository.root / "k8s"
    renderer = functools.cache(render)

    for given in folders:
        found = sorted((folder.resolve() for folder in kustomizations(given)), key=lambda folder: _rank(folder, root))
        if not found:
            raise ConfigError(f"a folder to check must hold kustomizations, got {str(given)!r}; name k8s or an overlay")
        for folder in found:
            name = str(folder.relative_to(repository.root)) if folder.is_relative_to(repository.root) else str(folder)
            if not is_component(folder):
                around = [document for other in _beside(folder, root) for document in renderer(other)]
                yield Bundle(name, renderer(folder), repository, around, crds_folder(), folder.is_relative_to(root / "overlays"))
            elif folder.parent == root / "components":
                below = root / "overlays" / _FIRST
                around = [document for other in _beside(below, root) for document in renderer(other)]
                yield Bundle(name, _on_top(folder, below, renderer(below)), repository, around, crds_folder(), True)


def _rank(folder: Path, root: Path) -> int:
    """Overlays, then what they are made of."""
    parts = [root / "overlays", root / "base", root / "workloads"]
    return next((rank for rank, part in enumerate(parts) if folder.is_relative_to(part)), len(parts))


def folders_of(bundle: Bundle) -> list[Path]:
    """The folders that a bundle was rendered from; a component stands on an overlay."""
    folder = bundle.repository.root / bundle.name
    return [bundle.repository.root / "k8s/overlays" / _FIRST, folder] if is_component(folder) else [folder]


def _on_top(component: Path, below: Path, standing: list[Document]) -> list[Document]:
    """A component's documents on an overlay; as they are in it, where the overlay includes it already."""
    text = (below / "kustomization.yaml").read_text(encoding="utf-8")
    included = [
        (below / str(path)).resolve() for document in load(text, where=below) for path in document.get("components") or []
    ]
    return standing if component in included else render_component(component, below)


def _beside(folder: Path, root: Path) -> list[Path]:
    """The folders whose objects stand in the same namespace: of an overlay its system and its workloads, else the base and all workloads."""
    overlay = next((part for part in (folder, *folder.parents) if part.parent == root / "overlays"), None)
    if overlay is None and folder != root / "base" and not folder.is_relative_to(root / "workloads"):
        return []
    together = kustomizations(overlay) if overlay else [root / "base", *kustomizations(root / "workloads")]
    return [other for other in together if other != folder and not is_component(other)]


def source_errors(root: Path) -> Iterator[tuple[str, str]]:
    """What is ambiguous in the YAML that is written, before Kustomize reads it and says what it took it for."""
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".yaml", ".yml") and path.is_file()):
        try:
            load_any(path.read_text(encoding="utf-8"), where=path.relative_to(root.parent))
        except ConfigError as error:
            yield "source", str(error)
