"""MLflow away, slow, failing, full: nothing that was measured is lost or doubled, and training waits for none of it.

A real server behind a proxy of the tests' own; real workers on one cluster. After each fault, what the server holds is compared with
what the workers wrote to their spools, point by point, and the adapter with that of a run whose server was well.
"""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from grun.config import Recipe
from grun.errors import OutageError
from pipelines import sweep, train
from pipelines.benchmarks.proxy import Act, Asked, proxied
from pipelines.benchmarks.servers import MLflowServer, free_port
from pipelines.entry import OUTCOME_FILE
from pipelines.registry import CANDIDATE, Registry
from pipelines.sweep_record import read_trials
from pipelines.tracking import flatten
from tests.faults.injection import Injection
from tests.faults.outage_site import GROUP, MARKS, SECONDS, VERBS, Site, has_exactly, is_recorded, tensors
from tests.faults.small_disk import SmallDisk
from tests.faults.table import row
from tests.faults.taught import TAUGHT

pytestmark = MARKS

SWEPT: dict[str, Any] = {
    **TAUGHT,
    "train": {"epochs": 20, "num_workers": 1, "engine": "torch", "report_every": 5},
    "sweep": {"space": "reft_rank", "num_trials": 2, "searcher": "random", "scheduler": "none"},
}

IMPATIENT = Injection("pipelines.patience:Patience.until", "replace", always=True, by="tests.faults.test_tracking:at_once")
NOT_SHIPPED = Injection("pipelines.following:Spool.ship", "replace", always=True, by="tests.faults.test_tracking:quietly")


def at_once(_until: object, _patience: object, action: Callable[[], Any]) -> Any:
    """Patience that has none."""
    return action()


def quietly(ship: Callable[..., None], *args: Any) -> None:
    """Shipping that leaves out what MLflow does not take."""
    try:
        ship(*args)
    except OutageError:
        args[0]._shipped = args[0].path.stat().st_size


def all_of_them(_unknown: object, metrics: Any, _known: object) -> Any:
    """Take every result for news."""
    return dict(metrics)


def tells_mlflow(write: Callable[..., None], spool: Any, step: int, metrics: Any) -> None:
    """A worker that tells MLflow its metrics by itself."""
    write(spool, step, metrics)
    run = spool.path.parent
    uri = json.loads((run.parents[1] / f"{run.name}.yaml").read_text(encoding="utf-8"))["tracking"]["uri"]
    body = {"run_id": "", "metrics": [{"key": "train/loss", "value": 0.0, "timestamp": 0, "step": step}]}
    with suppress(OSError):
        urlopen(Request(f"{uri}/api/2.0/mlflow/runs/log-batch", json.dumps(body).encode(), method="POST"), timeout=SECONDS)


def appears(path: Path) -> bool:
    """Whether a file comes to be while one waits for it."""
    end = time.monotonic() + SECONDS
    while not path.is_file() and time.monotonic() < end:
        time.sleep(0.02)
    return path.is_file()


@row(
    GROUP,
    "server down at the start",
    where="train, sweep, promote: before any work",
    sees="refused within seconds: address, reason, what to check; status 2",
    broken=Injection("pipelines.checks:check_tracking", "skip", always=True),
)
@pytest.mark.parametrize("verb", ["train", "sweep", "promote"])
def test_a_server_that_is_down_is_refused_before_any_work(
    verb: str, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begun(_recipe: Recipe) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(VERBS[verb], "connected", begun)
    nobody = f"http://127.0.0.1:{free_port()}"
    recipe = site.recipe(f"down-{verb}", output=str(site.output / "down"), tracking={"uri": nobody})
    site.run(verb, recipe, status=2)
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("error: MLflow must be able to open the tracking store, got ")
    assert nobody in said
    assert "check that `tracking.uri` is right, that the server is up" in said
    assert not (site.output / "down").exists()


@row(
    GROUP,
    "every kind of call fails three times: carried out and its answer lost, then 500, then dropped",
    where="train: from making the run to registering the adapter",
    sees="`MLflow does not answer as it should; waiting for it`, then `MLflow is back`; the command ends well",
    broken=IMPATIENT,
)
@row(
    GROUP,
    "an answer is lost whose request was carried out",
    where="train: making a run, a model, a version; a batch of metrics",
    sees="`waiting for it`, `MLflow is back`; one run, one model, one version, every point once",
    broken=(
        Injection("pipelines.tracking:Tracker._only_run", "skip", always=True),
        Injection("pipelines.mlflow_flavor:_begun_before", "skip", always=True),
        Injection("pipelines.registering:_only_version", "skip", always=True),
    ),
)
def test_every_call_may_fail_in_every_way(site: Site, healthy: Recipe) -> None:
    ways: list[Act] = ["lose", "fail", "drop"]
    asked_before: Counter[str] = Counter()
    recipe = site.recipe("troubled")

    def rule(asked: Asked) -> Act:
        if asked.kind.startswith(("POST mlflow/experiments", "GET mlflow/experiments")):
            return "pass"  # the server is well when the command begins
        asked_before[asked.kind] += 1
        nth = asked_before[asked.kind]
        return ways[nth - 1] if nth <= len(ways) else "pass"

    site.proxy.rule = rule
    site.run("train", recipe)
    failed = {asked.kind for asked, act in site.proxy.seen if act == "lose"}
    assert {
        f"POST mlflow/{call}" for call in ("runs/create", "runs/log-batch", "logged-models", "model-versions/create")
    } <= failed
    is_recorded(site, recipe)
    assert tensors(train.run_folder(recipe)) == tensors(train.run_folder(healthy))


@row(
    GROUP,
    "server killed in the middle of a batch of metrics, and back only when training has long ended",
    where="train",
    sees="`MLflow does not take what is recorded`, where it is kept; `waiting for it, 300 s at most`; the command ends well",
    broken=NOT_SHIPPED,
)
def test_a_server_that_is_killed_while_a_run_trains(site: Site, healthy: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = site.recipe("killed")
    outcome = train.run_folder(recipe) / OUTCOME_FILE
    trained_before: list[bool] = []

    def kill(asked: Asked) -> None:
        if asked.has_metrics and not trained_before:
            trained_before.append(outcome.is_file())
            site.server.end()  # it has written them, and nobody knows

    def rule(_asked: Asked) -> Act:
        if not trained_before or site.server.is_up:
            return "pass"
        rounds = site.proxy.num_failed
        if rounds >= 5 and outcome.is_file():  # training went on to its end without it
            site.server.start()
            return "pass"
        return "drop"

    site.proxy.before_answer, site.proxy.rule = kill, rule
    site.run("train", recipe)
    assert trained_before == [False]
    said = capsys.readouterr().err
    assert said.count("MLflow does not take what is recorded") == 1, "an outage is said once"
    assert str(train.run_folder(recipe) / "metrics.jsonl") in said
    assert "MLflow takes what is recorded again" in said or "MLflow is back" in said
    is_recorded(site, recipe)
    assert tensors(train.run_folder(recipe)) == tensors(train.run_folder(healthy))


@row(
    GROUP,
    "server away for good from the middle of training on",
    where="train",
    sees="trains to the end, waits for `tracking.patience_seconds`; status 2: what is kept, and that the same command records it",
    broken=NOT_SHIPPED,
)
def test_a_server_that_never_comes_back(site: Site, healthy: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = site.recipe("away", tracking={"patience_seconds": 0.2})
    folder = train.run_folder(recipe)
    site.proxy.rule = lambda asked: "drop" if asked.has_metrics or "drop" in {act for _a, act in site.proxy.seen} else "pass"
    site.run("train", recipe, status=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: MLflow must be able to record metrics, got ")
    assert last.endswith("what is done is kept in the output folder, and the same command goes on from there and records it")
    assert tensors(folder) == tensors(train.run_folder(healthy))
    spool = (folder / "metrics.jsonl").read_bytes()
    site.proxy.heal()
    assert site.only_run("attributes.run_name = 'away'").data.metrics == {}
    site.run("train", recipe)
    assert (folder / "metrics.jsonl").read_bytes() == spool, "it was not trained again"
    is_recorded(site, recipe)


@row(
    GROUP,
    "slow: an answer takes longer than the rest of training",
    where="train",
    sees="nothing; recording ends later",
    broken=Injection(
        "grun.training.spool:MetricsSpool.write", "replace", always=True, by="tests.faults.test_tracking:tells_mlflow"
    ),
)
def test_training_does_not_wait_for_a_slow_server(site: Site, healthy: Recipe) -> None:
    recipe = site.recipe("slow")
    outcome = train.run_folder(recipe) / OUTCOME_FILE
    appeared: list[tuple[bool, bool]] = []

    def hold(asked: Asked) -> None:
        if asked.has_metrics and not appeared:
            appeared.append((outcome.is_file(), appears(outcome)))

    site.proxy.before_answer = hold
    site.run("train", recipe)
    assert appeared == [(False, True)], "training waited for the answer"
    is_recorded(site, recipe)
    assert tensors(train.run_folder(recipe)) == tensors(train.run_folder(healthy))


@row(
    GROUP,
    "server killed in the middle of a sweep, and back only when all trials have ended",
    where="sweep: the parent, its children, the registry",
    sees="`MLflow does not take what is recorded`, where it is kept; trials are announced as they end; the command ends well",
    broken=NOT_SHIPPED,
)
@row(
    GROUP,
    "a result is recorded, and what follows it fails",
    where="sweep: the end of a trial",
    sees="nothing: it is recorded again, and MLflow holds it once",
    broken=Injection("pipelines.tracking:_unknown", "replace", always=True, by="tests.faults.test_tracking:all_of_them"),
)
def test_a_server_that_is_killed_in_the_middle_of_a_sweep(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe.parse({**SWEPT, "output": str(site.output), "tracking": {"uri": site.proxy.uri, "patience_seconds": 120.0}})
    folder = sweep.sweep_folder(recipe)
    killed_with: list[int] = []
    ended: Counter[str] = Counter()

    def num_done() -> int:
        return sum(record.done for record in read_trials(folder))

    def kill(asked: Asked) -> None:
        if asked.has_metrics and not killed_with:
            killed_with.append(num_done())
            site.server.end()

    def rule(asked: Asked) -> Act:
        if site.server.is_up:
            if asked.kind != "POST mlflow/runs/update" or asked.json.get("status") != "FINISHED":
                return "pass"
            ended[asked.json["run_id"]] += 1  # each run's end fails once, with its results recorded
            return "drop" if ended[asked.json["run_id"]] == 1 else "pass"
        if num_done() == 2 and site.proxy.num_failed >= 5:
            site.server.start()
            return "pass"
        return "drop"

    site.proxy.before_answer, site.proxy.rule = kill, rule
    site.run("sweep", recipe)
    assert killed_with == [0]
    said = capsys.readouterr().err
    assert str(folder) in said
    assert said.count("\ntrial ") == 2
    tracker = site.tracker
    parent = site.only_run("tags.kind = 'sweep'")
    children = {run.info.run_name: run for run in tracker.search(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")}
    records = read_trials(folder)
    assert children.keys() == {record.trial_id for record in records}
    for record in records:
        child, trial = children[record.trial_id], folder / "trials" / record.trial_id
        assert (child.info.status, child.data.tags["kind"]) == ("FINISHED", "trial")
        assert child.data.params == flatten(record.point)
        has_exactly(tracker, child, trial / "metrics.jsonl", record.result)
        reports = {f"reports/{path.parent.name}.json" for path in trial.glob("evaluation/*/report.json")}
        assert {file.path for file in tracker.client.list_artifacts(child.info.run_id, "reports")} == reports
    assert parent.info.status == "FINISHED"
    for key in parent.data.metrics:
        assert len(tracker.client.get_metric_history(parent.info.run_id, key)) == 1, key
    [version] = tracker.client.search_model_versions(f"run_id = '{parent.info.run_id}'")
    assert Registry(tracker).version_of(recipe.registered_model, CANDIDATE) == int(version.version)


@row(
    GROUP,
    "disk full on the server's side (database and artifacts on a tmpfs), and freed when training has ended",
    where="train",
    sees="`MLflow does not take what is recorded`, with the server's reason; the command ends well",
    broken=NOT_SHIPPED,
)
def test_a_server_whose_disk_is_full(site: Site, healthy: Recipe, tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("a file system of its own takes root: a full disk on the server's side was not tried")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'
    with (
        MLflowServer(disk, within=("unshare", "-m", "sh", "-c", script, str(disk))).running() as small,
        proxied(small) as proxy,
    ):
        full = SmallDisk(Path(f"/proc/{small.pid}/root{disk}"))  # as the server sees it
        recipe = site.recipe("full", tracking={"uri": proxy.uri})
        outcome = train.run_folder(recipe) / OUTCOME_FILE
        refused: list[bool] = []

        def rule(asked: Asked) -> Act:
            if asked.has_metrics and not refused and not full.is_filled:
                full.fill()
            elif len(refused) >= 5 and outcome.is_file():
                full.free()
            return "pass"

        def count(_asked: Asked, status: int) -> None:
            if status >= 500:
                refused.append(outcome.is_file())

        proxy.rule, proxy.on_status = rule, count
        site.run("train", recipe)
        assert refused[0] is False
        is_recorded(replace(site, server=small, proxy=proxy), recipe)
    assert tensors(train.run_folder(recipe)) == tensors(train.run_folder(healthy))
