"""Runs, params, metrics and artifacts in MLflow, recorded from one place: the driver.

Workers never talk to MLflow. They append to a JSONL spool, which the driver ships; a server that is away
for a while then costs neither metrics nor training time (:mod:`grun.training.spool` says what a line is).

MLflow keeps one point per (run, key, step, time_ms, value), so shipping a spool again changes nothing. A run is found
again by its key, so that one whose making was never confirmed is not made twice. So everything here may be done again, which
is how calls wait for a store that is away (`pipelines.patience`).

Every call names its run and its store: nothing here reads or sets MLflow's active run, its global URI or the
current folder.

Source: MLflow 3.17, `MlflowClient`.
"""

import getpass
import hashlib
import json
import logging
import math
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from grun.config import TrackingConfig
from grun.errors import TrackingError
from grun.training.spool import SpoolLine
from pipelines.mlflow_store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run

__all__ = ["RunStatus", "Tracker", "flatten"]

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_logger = logging.getLogger(__name__)

_LINES_AT_ONCE = 1000

_PARAM_LIMIT = 6000
_DATASET_DIGEST_LIMIT = 36
_KEY_TAG = "grun.key"
_PARENT_TAG = "mlflow.parentRunId"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested values into MLflow params: dotted keys, texts no longer than MLflow keeps; sequences become JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            text = json.dumps(value, default=str) if isinstance(value, list | tuple | Mapping) else str(value)
            flat[name] = text[:_PARAM_LIMIT]
    return flat


class Tracker:
    """One MLflow experiment, reached by an explicit URI.

    Making one creates the store and the experiment where they are missing, so make it once, in the driver,
    before any worker or trial starts: MLflow's own creation of a database is not safe against races.

    Args:
        uri: `http(s)` server or database (`sqlite:////absolute/path.db`, `postgresql://...`).
        experiment: Name of the experiment.
        artifact_root: Folder for the artifacts of an experiment that is created in a database;
            a server decides for itself.
        patience_seconds: How long calls wait for a store that is away; opening it does not.

    Raises:
        TrackingError: the store cannot be reached within seconds, is of another kind, or the experiment was deleted.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: Path, *, patience_seconds: float = 0.0) -> None:
        self.store = Store(uri, patience_seconds=patience_seconds)
        self.client = self.store.client
        self.calling = self.store.calling
        self.patience = self.store.patience
        self.experiment_id = self.store.open_experiment(experiment, artifact_root)

    @classmethod
    def open(cls, config: TrackingConfig, output: Path, *, waits: bool = True) -> "Tracker":
        """Open the configured store, or an SQLite file below the output folder with its artifacts beside it.

        Args:
            waits: whether calls wait for a store that is away, `tracking.patience_seconds` at most.

        Raises:
            TrackingError: as the constructor, and if the folder cannot be made or was moved.
        """
        folder = output.resolve() / "mlflow"
        if config.uri is None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrackingError(
                    f"the output folder must be writable, got {str(folder)!r} ({error.strerror}); choose another one"
                ) from None
        uri = config.uri or f"sqlite:///{folder / 'mlflow.db'}"
        patience = config.patience_seconds if waits else 0.0
        tracker = cls(uri, config.experiment, folder / "artifacts", patience_seconds=patience)
        if config.uri is None:
            tracker._check_place(folder / "artifacts")
        return tracker

    def start_run(
        self, name: str, *, parent: str | None = None, tags: Mapping[str, str] | None = None, key: str | None = None
    ) -> str:
        """Create a run, or continue the one with the same key, and return its id.

        Args:
            name: Name shown in the UI.
            parent: Run id of the parent.
            tags: Further tags.
            key: Identity of the run within the experiment (say, sweep and trial); a resumed command passes
                the same key and gets the same run.
        """
        # A key may hold a path, and a path anything; its digest can be asked for without quoting.
        digest = hashlib.sha256((key or uuid.uuid4().hex).encode()).hexdigest()
        all_tags = {
            **_origin_tags(),
            **({_PARENT_TAG: parent} if parent is not None else {}),
            _KEY_TAG: digest,
            **(tags or {}),
        }
        with self.calling("start a run"):
            return self.patience.until(partial(self._find_or_create, name, digest, all_tags))

    def end_run(self, run_id: str, status: RunStatus = "FINISHED") -> None:
        """Close a run with its status."""
        with self.calling("end a run"):
            self.client.set_terminated(run_id, status)

    def end_children(self, parent: str, status: RunStatus = "KILLED") -> list[str]:
        """Close the children that still say RUNNING, as those of killed workers do; return their ids."""
        with self.calling("end the runs of a sweep"):
            query = f"tags.`{_PARENT_TAG}` = '{parent}' AND attributes.status = 'RUNNING'"
            run_ids = [run.info.run_id for run in self.search(query)]
            for run_id in run_ids:
                self.client.set_terminated(run_id, status)
        return run_ids

    @contextmanager
    def run(
        self, name: str, *, parent: str | None = None, tags: Mapping[str, str] | None = None, key: str | None = None
    ) -> Iterator[str]:
        """A run for the length of a `with` block: FINISHED, KILLED by Ctrl-C, or FAILED by any other exception."""
        run_id = self.start_run(name, parent=parent, tags=tags, key=key)
        try:
            yield run_id
        except BaseException as error:
            # The block's own exception is the news; a store that is away as well must neither hide it nor hold it up.
            with suppress(TrackingError), self.patience.hasty():
                self.end_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self.end_run(run_id)

    def search(self, query: str) -> Iterator["Run"]:
        """Yield this experiment's runs that match an MLflow filter, oldest first."""
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], query, order_by=["attributes.start_time ASC"], page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Record nested values as params; values already recorded may come again, but not change.

        Raises:
            TrackingError: a param has another value already, or MLflow refuses.
        """
        from mlflow.entities import Param

        params = flatten(values)
        with self.calling("record params"):
            known = self.client.get_run(run_id).data.params
            changed = {key: (known[key], value) for key, value in params.items() if known.get(key, value) != value}
            if changed:
                key, (old, new) = next(iter(changed.items()))
                raise TrackingError(
                    f"the params of a run must not change, got `{key}` = {new!r} where run {run_id} has {old!r} "
                    f"({len(changed)} differ); resume with the same recipe, or choose another output folder or experiment"
                )
            self.client.log_batch(run_id, params=[Param(key, value) for key, value in params.items() if key not in known])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record metrics at a step, now, but for those that have this very value already, as in a command that goes on.

        Values that are not finite become a tag `non_finite.<key>`, for charts bear none.
        """
        with self.calling("read metrics"):
            known = self.client.get_run(run_id).data.metrics
        self._log_points(run_id, [(step, int(time.time() * 1000), _unknown(metrics, known))])

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Put tags on a run; there may be none."""
        from mlflow.entities import RunTag

        if tags:
            with self.calling("tag a run"):
                self.client.log_batch(run_id, tags=[RunTag(key, text) for key, text in tags.items()])

    def ship_spool(self, run_id: str, path: Path, *, offset: int = 0) -> int:
        """Record the next complete lines of a spool from `offset` on, a thousand at most; return the offset (bytes) to go on from.

        A file that does not exist yet, and a last line that is still being written, are left for the next call.
        A damaged line, as a crash leaves behind, is skipped with a warning; a run that goes on computes its step once more.
        """
        try:
            with path.open("rb") as spool:
                spool.seek(offset)
                complete = [line for line in islice(spool, _LINES_AT_ONCE) if line.endswith(b"\n")]
        except FileNotFoundError:
            return offset
        points = []
        for line in complete:
            try:
                read = SpoolLine.parse(line)
                points.append((read.step, read.time_ms, read.metrics))
            except ValueError:
                _logger.warning("%s: skipped a line that is not a spool entry: %r", path, line[:80])
        if points:
            self._log_points(run_id, points)
        return offset + sum(map(len, complete))

    def log_dataset(self, run_id: str, name: str, digest: str, context: str, num_rows: int, source_kind: str) -> None:
        """Record which data a run used, by digest; the rows themselves stay where they are.

        Args:
            digest: SHA-256 of the records. MLflow's field holds 36 characters of it, the source all of them.
            context: `forget`, `retain`, `holdout`.
            source_kind: Kind of the data source, for instance `tofu`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:_DATASET_DIGEST_LIMIT],
            source_type=source_kind,
            source=json.dumps({"kind": source_kind, "sha256": digest}),
            profile=json.dumps({"num_rows": num_rows}),
        )
        with self.calling("record a dataset"):
            self.client.log_inputs(run_id, [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])])

    def log_figure(self, run_id: str, figure: "Figure", name: str) -> None:
        """Store a matplotlib figure under an artifact name such as `figures/pareto.png`."""
        with self.calling("store a figure"):
            self.client.log_figure(run_id, figure, name, save_kwargs={"dpi": 110})

    def log_json(self, run_id: str, value: Mapping[str, Any], name: str) -> None:
        """Store a JSON document under an artifact name."""
        with self.calling("store a JSON document"):
            self.client.log_text(run_id, json.dumps(value, indent=2, sort_keys=True), name)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Store a text under an artifact name; the UI renders `.html` and `.md`."""
        with self.calling("store a text"):
            self.client.log_text(run_id, text, name)

    def log_folder(self, run_id: str, folder: Path, name: str) -> None:
        """Store all files of a folder under an artifact folder."""
        if not folder.is_dir():  # MLflow would store nothing, without a word
            raise TrackingError(f"an artifact folder must be a folder, got {str(folder)!r}, which is none; check the path")
        with self.calling("store a folder"):
            self.client.log_artifacts(run_id, str(folder), name)

    def _check_place(self, artifacts: Path) -> None:
        """Refuse an embedded store that was moved or copied: MLflow keeps whole paths, and would read and write where it was.

        Raises:
            TrackingError: it was.
        """
        with self.calling("open the experiment"):
            location = self.client.get_experiment(self.experiment_id).artifact_location
        made = Path(unquote(urlsplit(location).path))
        is_its_own = made.parts[-2:] == artifacts.parts[-2:]  # else somebody keeps artifacts elsewhere
        if is_its_own and made.resolve() != artifacts.resolve():
            raise TrackingError(
                f"an output folder must stay where it was made, as MLflow keeps whole paths, got {str(artifacts.parents[1])!r} with an MLflow "
                f"store that was made in {str(made.parents[1])!r}; move it back, or link that path to it"
            )

    def _find_or_create(self, name: str, digest: str, tags: Mapping[str, str]) -> str:
        run_id = self._only_run(digest)
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        created = self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags)).info.run_id
        # a server that was slow to answer may have made it before
        return self._only_run(digest) or str(created)

    def _only_run(self, digest: str) -> str | None:
        """The run with this key; of several that a server made of one, the first stays."""
        found = [str(run.info.run_id) for run in self.search(f"tags.`{_KEY_TAG}` = '{digest}'")]
        for superfluous in found[1:]:
            self.client.delete_run(superfluous)
        return found[0] if found else None

    def _log_points(self, run_id: str, points: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric, RunTag

        metrics, tags = [], {}
        for step, time_ms, values in points:
            for key, value in values.items():
                if math.isfinite(value):
                    metrics.append(Metric(key, value, time_ms, step))
                else:
                    tags[f"non_finite.{key}"] = f"{value} at step {step}"
        with self.calling("record metrics"):
            self.client.log_batch(run_id, metrics=metrics, tags=[RunTag(key, text) for key, text in tags.items()])


def _unknown(metrics: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if known.get(key) != value}


def _origin_tags() -> dict[str, str]:
    """Who and what made a run; MLflow fills these in only for its fluent interface."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        user = "unknown"
    tags = {"mlflow.user": user, "mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return tags
    return tags | {"mlflow.source.git.commit": git.stdout.strip()}
