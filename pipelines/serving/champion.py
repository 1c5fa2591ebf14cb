"""Which version is the champion, and a verified copy of it on this machine.

    <folder>/<registered model>/v<version>/     as the registry gave it
    <folder>/<registered model>/champion.json   which of them was served last, and its digest

Where the registry is away, the copy that was served last is good enough, as long as its files are what they were.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from grun.config import Config, Recipe
from grun.errors import AdapterError
from grun.reading import parse_json, read_text
from grun.writing import write_text
from pipelines.mlflow_flavor import load_adapter_folder
from pipelines.registry import CHAMPION, Registry
from pipelines.serving.loading import digest_files
from pipelines.tracking import Tracker

__all__ = ["Champion", "Found", "LocalCopy", "RegisteredChampion", "served_names"]


_MAX_NOTE = 2**16
"""Bytes of `champion.json`."""


@dataclass(frozen=True)
class Champion:
    """A version of a registered model."""

    name: str
    version: int


@dataclass(frozen=True)
class Found:
    """A champion with its files."""

    champion: Champion
    folder: Path
    """The adapter, or the stack."""


class _Record(Config):
    """What `champion.json` holds."""

    version: int
    digest: str


def served_names(recipe: Recipe) -> tuple[str, ...]:
    """Registered models that may be served; the first that has a champion is."""
    named = recipe.serving.registered_model
    return (named,) if named else tuple(dict.fromkeys((recipe.ledger_model, recipe.registered_model)))


class RegisteredChampion:
    """The champion as the registry knows it.

    Args:
        names: registered models; the first that has a champion is served, and from then on no other.
        pinned: a version in place of the champion.
    """

    def __init__(self, recipe: Recipe, names: tuple[str, ...], folder: Path, pinned: int | None = None) -> None:
        self._recipe, self._names, self._folder, self._pinned = recipe, names, folder, pinned
        self._registry: Registry | None = None

    def look(self) -> Champion | None:
        """Ask which version it is; None while there is none.

        Raises:
            TrackingError: the registry is away.
        """
        registry = self._opened()
        for name in self._names:
            version = registry.version_of(name, CHAMPION) if self._pinned is None else self._pinned_in(registry, name)
            if version is not None:
                self._names = (name,)  # clients ask for it by name
                return Champion(name, version)
        return None

    def fetch(self, champion: Champion) -> Found:
        """Download a version, and check it against the registry.

        Raises:
            TrackingError: the registry is away.
            PromotionError: the version is gone.
            AdapterError: its files are not the ones that were registered.
        """
        into = self._folder / champion.name
        into.mkdir(parents=True, exist_ok=True)
        with FileLock(into / ".lock"):  # servers may share a folder
            _version, folder = self._opened().download(champion.name, champion.version, into)
        return Found(champion, folder)

    def _opened(self) -> Registry:
        if self._registry is None:
            self._registry = Registry(Tracker.open(self._recipe.tracking, self._recipe.output, waits=False))
        return self._registry

    def _pinned_in(self, registry: Registry, name: str) -> int | None:
        assert self._pinned is not None
        return self._pinned if name in registry.names() else None


class LocalCopy:
    """The version that was served last, on this machine."""

    def __init__(self, names: tuple[str, ...], folder: Path, pinned: int | None = None) -> None:
        self._names, self._folder, self._pinned = names, folder, pinned

    def find(self) -> Found | None:
        """The copy, if there is one.

        Raises:
            AdapterError: it is not what was served.
        """
        for name in self._names:
            record = _read(self._folder / name / "champion.json")
            if record is None or self._pinned not in (None, record.version):
                continue
            folder = load_adapter_folder(self._folder / name / f"v{record.version}")
            if (digest := digest_files(folder)) != record.digest:
                raise AdapterError(
                    f"the local copy of a champion must be what was served, got {digest[:12]} in {str(folder)!r}, expected "
                    f"{record.digest[:12]}; delete it, and let the registry give it again"
                )
            return Found(Champion(name, record.version), folder)
        return None

    def keep(self, found: Found, digest: str) -> None:
        """Note what is served, and let older copies go."""
        into = self._folder / found.champion.name
        record = _Record(version=found.champion.version, digest=digest)
        with FileLock(into / ".lock"):
            write_text(into / "champion.json", record.model_dump_json(indent=2) + "\n")
        for other in into.glob("v*"):
            if other.name != f"v{found.champion.version}":
                shutil.rmtree(other, ignore_errors=True)


def _read(path: Path) -> _Record | None:
    try:
        return _Record.model_validate(parse_json(read_text(path, limit=_MAX_NOTE)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"the note of what was served last must be as it was written, got {str(path)!r} ({type(error).__name__}); delete it"
        ) from None
