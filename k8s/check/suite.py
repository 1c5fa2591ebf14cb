"""Which folders are checked, what stands around each of them, and all the rules."""

import os
from collections.abc import Iterator
from pathlib import Path

from grun.errors import ConfigError
from k8s.check.bundle import Bundle
from k8s.check.render import is_component, kustomizations, render, render_component
from k8s.check.repository import Repository
from k8s.check.rule import Rule
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
from k8s.check.strict_yaml import Document, load

__all__ = ["RULES", "bundles", "crds_folder", "source_errors"]

RULES: tuple[Rule, ...] = tuple(
    rule
    for module in (
        schema, ray_clusters, ray_jobs, security, resources, images, references, availability, entrypoints, environment, network, monitoring,
    )
    for rule in module.RULES
)  # fmt: skip


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
    """Render every kustomization at and below the folders.

    A folder inside an overlay is applied to that overlay's system; other workloads, and components, to the base. Folders of
    shared settings are components that every one of those includes, and are seen there.

    Raises:
        ConfigError: a folder holds no kustomization, or one cannot be rendered.
    """
    root = repository.root / "k8s"
    rendered: dict[Path, list[Document]] = {}

    def documents(folder: Path) -> list[Document]:
        if folder not in rendered:
            rendered[folder] = render(folder)
        return rendered[folder]

    for given in folders:
        found = [folder.resolve() for folder in kustomizations(given)]
        if not found:
            raise ConfigError(f"a folder to check must hold kustomizations, got {str(given)!r}; name k8s or an overlay")
        for folder in found:
            name = str(folder.relative_to(repository.root)) if folder.is_relative_to(repository.root) else str(folder)
            base = root / "base"
            if not is_component(folder):
                standing = _standing(folder, root)
                around = documents(standing) if standing else []
                yield Bundle(name, documents(folder), repository, around, crds_folder())
            elif folder.parent == root / "components":
                below = next((overlay for overlay in kustomizations(root / "overlays") if overlay.name == "local-cpu"), base)
                yield Bundle(name, _on_top(folder, below, documents(below)), repository, [], crds_folder())


def _on_top(component: Path, below: Path, standing: list[Document]) -> list[Document]:
    """A component's documents on an overlay; as they are in it, where the overlay includes it already."""
    try:
        return render_component(component, below)
    except ConfigError as error:
        if "already registered" in str(error) or "already exists" in str(error):
            return standing
        raise


def _standing(folder: Path, root: Path) -> Path | None:
    """The system that a folder is applied to; None for what stands by itself."""
    for parent in folder.parents:
        if parent.parent == root / "overlays":
            return parent
    return root / "base" if folder.is_relative_to(root / "workloads") else None


def source_errors(root: Path) -> Iterator[tuple[str, str]]:
    """What is ambiguous in the YAML that is written, before Kustomize reads it and says what it took it for."""
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".yaml", ".yml") and path.is_file()):
        try:
            text = path.read_text(encoding="utf-8")
            # a file of patches is a list of them
            load("\n".join(f"  {line}" for line in ["patches:", *text.splitlines()])[2:] if text.lstrip("# \n").startswith("- ") else text, where=path)
        except ConfigError as error:
            yield str(path.relative_to(root.parent)), str(error)
