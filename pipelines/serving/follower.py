"""Follow the champion: a thread that asks the registry, loads what it names, and puts it to work beside the old version.

Whatever goes wrong on the way, the version that answers goes on answering, and what is wrong is in log, health and metrics.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from grun.errors import GrunError, PromotionError, TrackingError
from pipelines.serving.champion import Champion, Found, LocalCopy
from pipelines.serving.loading import Served
from pipelines.serving.metrics import Metrics

__all__ = ["Follower", "Source", "Status"]

_logger = logging.getLogger(__name__)

Origin = Literal["registry", "local copy"]


class Source(Protocol):
    """Where the champion comes from."""

    def look(self) -> Champion | None:
        """Ask which version it is."""
        ...

    def fetch(self, champion: Champion) -> Found:
        """Get its files."""
        ...


@dataclass(frozen=True)
class Status:
    """What is known about the champion."""

    registry_reachable: bool | None = None
    """Whether the registry answered when last asked; None before."""
    registered_version: int | None = None
    """The version that it named."""
    origin: Origin | None = None
    """Where the version that answers came from; None while there is none."""
    error: str | None = None
    """Why the version that answers is not the one that the registry names."""


class Follower:
    """Keeps the engine at the champion.

    Args:
        load: from files to a version in memory, on the base.
        install: puts a version to work.
        copy: what was served last; None keeps none.
    """

    def __init__(
        self,
        source: Source,
        copy: LocalCopy | None,
        load: Callable[[Found], Served],
        install: Callable[[Served], None],
        metrics: Metrics,
        poll_seconds: float,
    ) -> None:
        self._source, self._copy, self._load, self._install = source, copy, load, install
        self._metrics, self._poll_seconds = metrics, poll_seconds
        self._serving: Champion | None = None
        self._trouble: tuple[type[Exception], int | None] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="champion", daemon=True)
        self.status = Status()
        """The latest; replaced whole, so that readers see one moment."""
        self.looked = threading.Event()
        """Set once the registry was asked, and its answer acted upon."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def poll(self) -> None:
        """Ask once, and act on the answer."""
        try:
            champion = self._source.look()
        except TrackingError as error:
            self._metrics.registry(reachable=False)
            self._report(registry_reachable=False, error=error)
            if self._serving is None:
                self._serve_copy(None)
            return
        self._metrics.registry(reachable=True)
        version = champion.version if champion else None
        if champion is None:
            goes_on = "" if self._serving is None else f"; version {self._serving.version} goes on"
            missing = PromotionError(
                f"the registry must name a champion, got none for the served model{goes_on}; promote a version"
            )
            self._report(registry_reachable=True, error=missing)
        elif champion == self._serving:
            self._report(registry_reachable=True, registered_version=version, origin="registry")
        else:
            self._move_to(champion)

    def _move_to(self, champion: Champion) -> None:
        try:
            found = self._source.fetch(champion)
            served = self._load(found)
            self._install(served)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old version goes on
            self._metrics.swap_failed()
            self._report(registry_reachable=True, registered_version=champion.version, error=error)
            if self._serving is None:
                self._serve_copy(champion.version)
            return
        self._done(found, served, "registry")
        self._report(registry_reachable=True, registered_version=champion.version, origin="registry")

    def _serve_copy(self, registered_version: int | None) -> None:
        """Serve what was served last, as nothing is; why the registry's version is not stays in the status."""
        status = self.status
        try:
            found = self._copy.find() if self._copy else None
            if found is None:
                return
            served = self._load(found)
            self._install(served)
        except Exception as error:  # noqa: BLE001 - then there is nothing to serve until the registry comes
            self.status = replace(status, error=f"{status.error}; and the local copy: {_said(error)}")
            return
        self.status = replace(status, registered_version=registered_version, origin="local copy")
        self._done(found, served, "local copy")

    def _done(self, found: Found, served: Served, origin: Origin) -> None:
        self._serving = found.champion
        self._metrics.swapped(served)
        _logger.warning("version %d of %s answers, from the %s", served.version, served.name, origin)
        if self._copy is not None:
            self._copy.keep(found, served.digest)

    def _report(
        self,
        *,
        registry_reachable: bool,
        registered_version: int | None = None,
        origin: Origin | None = None,
        error: Exception | None = None,
    ) -> None:
        trouble = None if error is None else (type(error), registered_version)
        if error is not None and trouble != self._trouble:  # once, and not at every poll
            _logger.error("the champion cannot be followed: %s", _said(error))
        self._trouble = trouble
        said = None if error is None else _said(error)
        self.status = Status(registry_reachable, registered_version, origin or self.status.origin, said)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception as error:  # noqa: BLE001 - the thread must outlive it
                self._report(registry_reachable=False, error=error)
            self.looked.set()
            self._stop.wait(self._poll_seconds)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, GrunError) else f"{type(error).__name__}: {error}"
