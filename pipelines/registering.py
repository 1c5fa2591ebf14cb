"""Register an adapter once, however often an answer of MLflow's is lost on the way: look first, then make; the alias comes last.

    files of a run -> logged model -> read back -> model version -> alias

Each step finds what an earlier attempt left of it, so the whole may be done again, by the same command or by the next.
"""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from grun.errors import AdapterError
from pipelines import mlflow_flavor
from pipelines.patience import is_outage
from pipelines.tracking import Tracker

if TYPE_CHECKING:
    from grun.lm import BaseInfo

__all__ = ["digest_tags", "fetch", "find_or_register"]


def find_or_register(
    tracker: Tracker, model_name: str, alias: str, run_id: str, adapter_folder: Path, base: "BaseInfo", tags: Mapping[str, str]
) -> int:
    """Register the files of an adapter or a stack, point an alias at them, and return the version.

    Raises:
        AdapterError: the folder is neither, or what comes back is not what was logged; nothing is registered.
        mlflow.MlflowException: the store is away, and the same call goes on from what was done; or it refuses, and no version stays.
    """
    client = tracker.client
    digests = mlflow_flavor.digests_of(adapter_folder)
    version = _only_version(tracker, model_name, run_id, digests)
    if version is not None:
        client.set_registered_model_alias(model_name, alias, str(version))
        return version
    model_id = mlflow_flavor.log_model(client, run_id, adapter_folder=adapter_folder, base=base, tags=tags)
    try:
        location = client.get_logged_model(model_id).artifact_location
        _read_back(tracker, location, digests)
    except AdapterError:
        client.delete_logged_model(model_id)
        raise
    # A server accepts only the logged model's URI; a database would look that up in MLflow's global store.
    source = f"models:/{model_id}" if tracker.store.is_server else location
    version = _create_version(tracker, model_name, source, run_id, model_id, tags, digests)
    _point(tracker, model_name, alias, version)
    return version


def digest_tags(digests: Mapping[str, str]) -> dict[str, str]:
    """The tags of a version that say what its files are."""
    return {f"sha256.{name}": digest for name, digest in digests.items()}


def fetch(tracker: Tracker, location: str, into: Path) -> Path:
    """Download a model.

    Raises:
        TrackingError: it cannot be had.
    """
    from mlflow.artifacts import download_artifacts

    download = partial(download_artifacts, artifact_uri=location, dst_path=str(into), tracking_uri=tracker.store.uri)
    with tracker.calling("download a model"):
        return Path(tracker.patience.until(download))


def _only_version(tracker: Tracker, model_name: str, run_id: str, digests: Mapping[str, str]) -> int | None:
    """The version of these files of a run; of several that a server made of one, the first stays."""
    versions = tracker.client.search_model_versions(f"name = '{model_name}' AND run_id = '{run_id}'")
    tags = digest_tags(digests)
    found = sorted(int(version.version) for version in versions if tags.items() <= version.tags.items())
    for superfluous in found[1:]:
        tracker.client.delete_model_version(model_name, str(superfluous))
    return found[0] if found else None


def _read_back(tracker: Tracker, location: str, digests: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = mlflow_flavor.load_adapter_folder(fetch(tracker, location, Path(scratch)))
        stored = mlflow_flavor.digests_of(folder)
    if stored != digests:
        raise AdapterError(
            f"a logged adapter must come back as it was, got {stored} instead of {dict(digests)}; check the artifact store"
        )


def _create_version(
    tracker: Tracker,
    model_name: str,
    source: str,
    run_id: str,
    model_id: str,
    tags: Mapping[str, str],
    digests: Mapping[str, str],
) -> int:
    from mlflow.exceptions import MlflowException

    try:
        tracker.client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    all_tags = {**tags, **digest_tags(digests)}
    created = tracker.client.create_model_version(model_name, source, run_id, tags=all_tags, model_id=model_id)
    # a server that was slow to answer may have made it before
    return _only_version(tracker, model_name, run_id, digests) or int(created.version)


def _point(tracker: Tracker, model_name: str, alias: str, version: int) -> None:
    from mlflow.exceptions import MlflowException

    try:
        tracker.client.set_registered_model_alias(model_name, alias, str(version))
    except MlflowException as error:
        if not is_outage(error):  # after an outage it is found again
            with suppress(MlflowException):
                tracker.client.delete_model_version(model_name, str(version))
        raise
