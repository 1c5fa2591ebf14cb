"""A site that MLflow fails at: a real server behind a proxy of the tests' own, a cluster of this process, and what must be recorded."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from mlflow.entities import Run

from grun.config import Recipe
from pipelines import patience, promote, recording, sweep, sweep_tracking, train
from pipelines.benchmarks.proxy import Proxy, proxied
from pipelines.benchmarks.servers import MLflowServer
from pipelines.registry import CANDIDATE, Registry
from pipelines.running import run_command
from pipelines.tracking import Tracker, flatten
from pipelines.trainer import deciding_settings
from tests.pipelines.conftest import MakeRecipe
from tests.pipelines.runs import on_a_cluster

__all__ = [
    "GROUP",
    "MARKS",
    "SECONDS",
    "VERBS",
    "Site",
    "has_exactly",
    "healthy",
    "is_recorded",
    "server",
    "site",
    "tensors",
    "whole_site",
]

MARKS = [
    pytest.mark.slow,  # a server and workers start
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
"""Of every file of tests on a site."""

GROUP = "MLflow"
"""Of its rows in the fault table."""

SECONDS = 60
"""Half of what the client waits for an answer here."""
VERBS = {"train": train, "sweep": sweep, "promote": promote}


@dataclass
class Site:
    """A cluster, a server behind a proxy, and an output folder."""

    output: Path
    server: MLflowServer
    proxy: Proxy
    make: MakeRecipe

    def recipe(self, name: str, **above: Any) -> Recipe:
        """One worker of the plain engine, some thirty steps, reported every other one."""
        values = {
            "name": name,
            "output": str(self.output),
            "train": {"engine": "torch", "num_workers": 1, "epochs": 15, **above.pop("train", {})},
            "tracking": {"uri": self.proxy.uri, "patience_seconds": 120.0, **above.pop("tracking", {})},
        }
        return self.make(**{**values, **above})

    def run(self, verb: str, recipe: Recipe, *, status: int = 0) -> None:
        """Run a verb in this process, on the cluster that is there."""
        file = self.output / f"{recipe.name}.yaml"
        file.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: VERBS[verb].main(["--recipe", str(file)]))
        assert ended.value.code == status

    @property
    def tracker(self) -> Tracker:
        """Past the proxy."""
        return Tracker(self.server.url, "grun", self.output)

    def only_run(self, query: str) -> Run:
        """The one run that matches."""
        [run] = self.tracker.search(query)
        return run


def points(spool: Path) -> dict[str, list[tuple[int, int, float]]]:
    """What a spool holds: by key, step, time and value, in order."""
    found: dict[str, list[tuple[int, int, float]]] = {}
    for line in spool.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for key, value in entry["metrics"].items():
            found.setdefault(key, []).append((entry["step"], entry["time_ms"], value))
    return {key: sorted(values) for key, values in found.items()}


def has_exactly(tracker: Tracker, run: Run, spool: Path, results: dict[str, float] | None = None) -> None:
    """The run holds every point of the spool once, its results once, and nothing else."""
    expected = points(spool)
    assert len(expected["train/loss"]) >= 2
    for key, wanted in expected.items():
        stored = [(p.step, p.timestamp, p.value) for p in tracker.client.get_metric_history(run.info.run_id, key)]
        assert sorted(stored) == wanted, key
    for key, value in (results or {}).items():
        assert [p.value for p in tracker.client.get_metric_history(run.info.run_id, key)] == [value], key
    assert run.data.metrics.keys() == expected.keys() | (results or {}).keys()


def is_recorded(site: Site, recipe: Recipe) -> None:
    """One finished run of a training, with all of its metrics, params, data sets, its figure and one version, the candidate."""
    tracker, folder = site.tracker, train.run_folder(recipe)
    run = site.only_run(f"attributes.run_name = '{recipe.name}'")
    assert (run.info.status, run.data.tags["kind"]) == ("FINISHED", "train")
    has_exactly(tracker, run, folder / "metrics.jsonl")
    assert run.data.params == flatten(deciding_settings(recipe, sections=train._SECTIONS))
    assert run.inputs is not None
    assert run.outputs is not None
    assert sorted(tag.value for entry in run.inputs.dataset_inputs for tag in entry.tags) == ["forget", "holdout", "retain"]
    assert [file.path for file in tracker.client.list_artifacts(run.info.run_id, "figures")] == ["figures/training.png"]
    [version] = tracker.client.search_model_versions(f"run_id = '{run.info.run_id}'")
    assert Registry(tracker).version_of(recipe.registered_model, CANDIDATE) == int(version.version)
    [model] = tracker.client.search_logged_models([tracker.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert str(model.status) == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


def tensors(folder: Path) -> bytes:
    """The adapter that a training left."""
    return (folder / "adapter" / "adapter.safetensors").read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with MLflowServer(tmp_path_factory.mktemp("mlflow")).running() as running:
        yield running


@pytest.fixture(scope="module")
def whole_site(server: MLflowServer, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with proxied(server) as proxy, on_a_cluster(make_recipe()):  # which outlives the commands
        yield Site(tmp_path_factory.mktemp("outages"), server, proxy, make_recipe)


@pytest.fixture
def site(whole_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The site as it should be, looked after more often than a user's."""
    for verb in VERBS.values():
        monkeypatch.setattr(verb, "connected", lambda _recipe: nullcontext())
    monkeypatch.setattr(recording, "_SHIP_SECONDS", 0.1)
    monkeypatch.setattr(sweep_tracking, "_POLL_SECONDS", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(2 * SECONDS))
    monkeypatch.setattr(patience, "_FIRST_SECONDS", 0.02)
    monkeypatch.setattr(patience, "_LONGEST_SECONDS", 0.3)
    whole_site.proxy.heal()
    yield whole_site
    whole_site.proxy.heal()


@pytest.fixture(scope="module")
def healthy(whole_site: Site) -> Recipe:
    """A training whose server was well."""
    recipe = whole_site.recipe("healthy")
    with mock.patch.object(train, "connected", return_value=nullcontext()):
        whole_site.run("train", recipe)
    return recipe
