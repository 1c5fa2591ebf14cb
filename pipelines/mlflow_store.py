"""Reach an MLflow store safely: quiet, without pickles, within seconds, and with errors that a user can act on.

MLflow's defaults block one call for four minutes when a server is away, retry a database that cannot be opened
for as long, race when several processes create an SQLite file at once, and write to the current folder when no
URI is given. Here the URI is always given, reachability is tried first, and creation takes a file lock.

MLflow is imported when a :class:`Store` is made, not before: its import takes seconds and reads the environment
that :func:`prepare_environment` sets.

Source: MLflow 3.17, `MlflowClient`.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from filelock import FileLock

from grun.errors import OutageError, TrackingError
from pipelines.patience import Patience, PatientClient, is_outage

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Store", "prepare_environment"]

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

_FORCED = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
_DEFAULTS = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's own defaults block one call for four minutes when the server is away, and do twice what must be done once
    # where an answer is lost: see `pipelines.patience`
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_FULL = ("database or disk is full", "No space left on device", "Disk quota exceeded")
"""What SQLite and systems say of it."""
_STATEMENT = re.compile(r"^\(raised as a result of [^)]*\) | \[SQL: .*")
"""What SQLAlchemy says before and after a database's own words: how it came to a statement, and the statement with all its values."""

_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # a slow server takes seconds for every call, and is welcome
}


def prepare_environment() -> None:
    """Make MLflow safe and quiet: no pickles, no telemetry, no chatter, bounded retries (the user's own values win)."""
    os.environ.update(_FORCED)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


class Store:
    """An MLflow store, created where it is missing.

    Args:
        uri: `http(s)` server or database (`sqlite:////absolute/path.db`, `postgresql://...`).
        patience_seconds: How long later calls wait for a store that is away; opening it never does.

    Raises:
        TrackingError: the store is of another kind or cannot be reached within seconds.
    """

    def __init__(self, uri: str, *, patience_seconds: float = 0.0) -> None:
        self.uri = uri
        self.patience = Patience(patience_seconds)
        self._shown_uri, self._secret = _without_password(uri)
        prepare_environment()
        kind = urlsplit(uri).scheme.split("+")[0]
        if kind not in ("http", "https", *_DATABASES):
            raise TrackingError(
                f"`tracking.uri` must be an http(s) server or a database ({', '.join(_DATABASES)}), got {self._shown_uri!r}; "
                "MLflow's file store is no longer maintained: use sqlite:////absolute/path.db"
            )
        self.is_server = kind in ("http", "https")
        self._is_open = False
        with self.calling("open the tracking store"), self._while_opening(), self.patience.hasty():
            self.client = self._connect()
            self.client.search_experiments(max_results=1)  # a database is ready by now; a server shows that it answers
        self._is_open = True

    @contextmanager
    def calling(self, action: str) -> Iterator[None]:
        """Turn what MLflow, its database or the network raise into a :class:`TrackingError` that says what was attempted.

        Raises:
            OutageError: it may succeed later.
            TrackingError: it was refused.
        """
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            reason = _STATEMENT.sub("", " ".join(str(error).split()))
            if self._secret:
                reason = reason.replace(self._secret, "***")
            away, kept = is_outage(error), ""
            if away and self._is_open:
                kept = "; what is done is kept in the output folder, and the same command goes on from there and records it"
            raise (OutageError if away else TrackingError)(
                f"MLflow must be able to {action}, got {type(error).__name__}: {reason[:500]} (store {self._shown_uri!r}); "
                f"{_remedy(reason)}{kept}"
            ) from error

    def _connect(self) -> "MlflowClient":
        """A client that waits for its server as long as the store does."""
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # for when it was imported before us
        # it tells what goes wrong in a database with a traceback, and raises it too: `calling` says it
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        if not self.is_server:
            _check_database(self.uri)
        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return cast("MlflowClient", PatientClient(client, self.patience))

    def open_experiment(self, name: str, artifact_root: Path) -> str:
        """Return the id of an experiment, created if need be.

        Args:
            artifact_root: Folder for the artifacts of an experiment that is created in a database; a server decides for itself.

        Raises:
            TrackingError: the experiment was deleted, or cannot be created.
        """
        from mlflow.exceptions import MlflowException

        location = None if self.is_server else artifact_root.resolve().as_uri()
        with self.calling("open the experiment"):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                try:
                    return self.client.create_experiment(name, artifact_location=location)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                found = self.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise TrackingError(
                f"`tracking.experiment` must be an experiment that can be written to, got {name!r}, which was deleted; "
                "restore it or choose another name"
            )
        return found.experiment_id

    def _while_opening(self) -> AbstractContextManager[Any]:
        return _environment(_IMPATIENT) if self.is_server else _creation_lock(self.uri)


def _remedy(reason: str) -> str:
    if any(words in reason for words in _FULL):
        return "free space on its disk"
    return "check that `tracking.uri` is right, that the server is up and that you may write there"


def _without_password(uri: str) -> tuple[str, str | None]:
    """Return the URI as it may be shown, and the password that is to be kept out of messages."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri, None
    return uri.replace(f":{parts.password}@", ":***@"), parts.password


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while; MLflow reads its limits from there at every call."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old


def _creation_lock(uri: str) -> AbstractContextManager[Any]:
    """One process at a time creates an SQLite store; MLflow itself crashes when several do."""
    path = urlsplit(uri).path.removeprefix("/")
    is_file = uri.startswith("sqlite") and path and Path(path).parent.is_dir()
    return FileLock(f"{path}.lock", timeout=60) if is_file else nullcontext()


def _check_database(uri: str) -> None:
    """Read the table names once: MLflow would retry a database that cannot be opened for minutes."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
