"""A sweep on several nodes, from the rendered manifests, without Docker: pods are namespaces (see `tests.k8s.nodes`).

The laptop's overlay, as rendered: PostgreSQL (Debian's), MLflow with accounts, an object store (moto's), a Ray cluster with token
authentication, a head without CPUs and two workers with one each; restricted security contexts and NetworkPolicies hold throughout.
The submitter is the pod of the ledger's CronJob, with commands of this test in the place of its own.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from k8s.check.network import Network
from k8s.check.pod import container_ports
from tests.k8s.nodes.machine import require
from tests.k8s.nodes.reach import reached
from tests.k8s.system import NAMESPACE, OVERLAY, System, printed, standing_system

pytestmark = pytest.mark.slow

SWEEP_SECONDS, JOB_SECONDS, POLL_SECONDS = 600.0, 300.0, 0.2
AUTOSCALER_PORT = 44217
"""Declared for clusters that scale; here nobody listens there."""

RECIPE: dict[str, Any] = {
    "data": {"kind": "testbed", "num_people": 12, "num_forget": 2},
    "model": {
        "retain_twin": False,
        "taught": {"hidden_size": 64, "num_layers": 4, "vocab_size": 1024, "epochs": 14, "learning_rate": 0.005},
    },
    "adapter": {"relative_depths": [0.5, 0.75]},
    "train": {"epochs": 60, "num_workers": 2, "report_every": 10},
    "evaluation": {"max_new_tokens": 6},
    "calibration": {"alpha": 0.1},
    "sweep": {"space": "reft_rank", "num_trials": 2, "searcher": "optuna", "scheduler": "none"},
}

# what a client of the cluster sees in MLflow, as the account that pipelines have
LOOK = """
import json, mlflow
client = mlflow.MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("grun").experiment_id])
versions = client.search_model_versions("name = 'grun-demo'")
print(json.dumps({
    "runs": [[run.data.tags.get("kind"), run.info.status] for run in runs],
    "versions": {version.version: sorted(client.get_model_version("grun-demo", version.version).aliases) for version in versions},
    "artifacts": runs[0].info.artifact_uri,
}))
"""


# which kinds of actors live, and whether on the head
WHERE = """
import json
from ray.util.state import list_actors, list_nodes
heads = {node.node_id for node in list_nodes() if node.is_head_node}
actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
print(json.dumps(sorted({(actor.class_name, actor.node_id in heads) for actor in actors})))
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    require(renders=True, postgres=True)
    given = yaml.safe_load((OVERLAY / "settings" / "recipe.yaml").read_text(encoding="utf-8"))
    tiny = {**given, **RECIPE}
    recipes = {
        "tiny.yaml": yaml.safe_dump(tiny),
        "bad.yaml": yaml.safe_dump({**tiny, "name": "bad", "adapter": {"layers": [99]}}),
    }
    with standing_system(recipes, tmp_path_factory.mktemp("system")) as running:
        yield running


def sweep(system: System, name: str) -> "subprocess.CompletedProcess[str]":
    command = ["python", "pipelines/sweep.py", "--recipe", "/config/tiny.yaml", "--name", name]
    return system.submit(*command, seconds=SWEEP_SECONDS)


def trials(system: System, name: str) -> dict[str, dict[str, Any]]:
    """The records of a sweep's trials, by their points."""
    files = (system.results / "sweeps" / name / "trials").glob("*/trial.json")
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {json.dumps(record["point"]): record for record in records}


def adapter(system: System, name: str, trial: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(system.results / "sweeps" / name / "trials" / trial["trial_id"] / "adapter" / "adapter.safetensors")


@pytest.fixture(scope="module")
def undisturbed(system: System) -> "subprocess.CompletedProcess[str]":
    """A sweep that nothing happens to."""
    return sweep(system, "undisturbed")


@pytest.mark.parametrize(
    ("variables", "answer"),
    [
        ({"RAY_AUTH_TOKEN": "fedcba9876543210" * 4}, "Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
    ],
)
def test_nobody_submits_without_the_token(system: System, variables: dict[str, str], answer: str) -> None:
    job = system.submit("python", "-c", "print('in')", seconds=JOB_SECONDS, **variables)
    assert job.returncode != 0
    assert answer in job.stdout + job.stderr


def test_every_process_is_restricted(system: System) -> None:
    for pod in system.pods:
        status = dict(line.split(":", 1) for line in printed(pod, ["cat", "/proc/1/status"]).splitlines())
        assert (status["CapBnd"].strip(), status["CapEff"].strip(), status["NoNewPrivs"].strip()) == ("0" * 16, "0" * 16, "1")
        assert "0" not in status["Uid"].split() + status["Gid"].split()
        mounts = [line.split() for line in printed(pod, ["cat", "/proc/1/mounts"]).splitlines()]
        assert [options.split(",")[0] for _, target, _, options, *_ in mounts if target == "/"] == ["ro"]


def test_a_sweep_trains_on_both_workers(system: System, undisturbed: "subprocess.CompletedProcess[str]") -> None:
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    assert "succeeded" in undisturbed.stdout
    records = trials(system, "undisturbed")
    assert len(records) == 2
    for record in records.values():
        assert record["done"]
        assert record["failure"] is None
        assert record["steps"] == record["total_steps"] == 120
        assert sorted(record["hosts"]) == sorted(worker.name for worker in system.workers)
        assert record["resident_share"] < 0.75  # ZeRO-3: neither of the two holds the base


def test_runs_and_the_adapter_are_in_mlflow_on_postgresql(
    system: System, undisturbed: "subprocess.CompletedProcess[str]"
) -> None:
    seen = json.loads(printed(system.head, ["python", "-c", LOOK], MLFLOW_TRACKING_URI="http://mlflow:5000"))
    assert sorted(seen["runs"]) == [["sweep", "FINISHED"], ["trial", "FINISHED"], ["trial", "FINISHED"]]
    assert seen["versions"] == {"1": ["candidate"]}
    assert seen["artifacts"].startswith("mlflow-artifacts:/")
    count = [
        "sh",
        "-c",
        'PGPASSWORD=$POSTGRES_PASSWORD psql -h 127.0.0.1 -U "$POSTGRES_USER" -d mlflow -Atc "select count(*) from runs"',
    ]
    assert printed(system.postgres, count).strip() == "3"
    stranger = system.head.execute(
        ["python", "-c", LOOK], timeout=JOB_SECONDS, MLFLOW_TRACKING_URI="http://mlflow:5000", MLFLOW_TRACKING_PASSWORD="x"
    )
    assert stranger.returncode != 0
    assert "401" in stranger.stderr


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(
    system: System, undisturbed: "subprocess.CompletedProcess[str]", tmp_path: Path
) -> None:
    victim = system.workers[0]
    command = ["python", "pipelines/sweep.py", "--recipe", "/config/tiny.yaml", "--name", "disturbed"]
    log = tmp_path / "job.log"
    job = system.submit_beside(*command, log=log)
    training = wait_for_checkpoint(system, "disturbed", job, log)
    system.cluster.kill(victim)
    assert not (training / "outcome.json").exists()  # it was in the midst of it
    new = system.replace(victim)
    # by chance nothing else of the sweep may have been on that node; by rule nothing was that it cannot lose
    actors = json.loads(printed(system.head, ["python", "-c", WHERE]))
    for kind in ("TrialHub", "_SlotHolder"):
        assert [on_head for found, on_head in actors if found == kind] == [True]
    system.cluster.wait_ready(new)
    assert job.wait(timeout=SWEEP_SECONDS) == 0, log.read_text()
    before, after = trials(system, "undisturbed"), trials(system, "disturbed")
    assert before.keys() == after.keys()
    for point, record in after.items():
        assert record["done"]
        assert record["failure"] is None
        assert record["steps"] == 120
        assert sorted(record["hosts"]) == sorted([new.name, system.workers[1].name])
        assert record["result"] == pytest.approx(before[point]["result"], abs=1e-3)
        mine, theirs = adapter(system, "disturbed", record), adapter(system, "undisturbed", before[point])
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6)


def wait_for_checkpoint(system: System, name: str, job: "subprocess.Popen[bytes]", log: Path) -> Path:
    """Wait until a trial has a checkpoint; return its folder."""
    while job.poll() is None:
        found = sorted((system.results / "sweeps" / name / "trials").glob("*/checkpoints/step*"))
        if found:
            return found[0].parents[1]
        with suppress(subprocess.TimeoutExpired):
            job.wait(timeout=POLL_SECONDS)
    pytest.fail(f"the sweep must train, and ended with {job.returncode}: {log.read_text()}")


def test_a_sweep_that_fails_says_so_in_its_status(system: System) -> None:
    job = system.submit("python", "pipelines/sweep.py", "--recipe", "/config/bad.yaml", seconds=JOB_SECONDS)
    assert job.returncode != 0
    assert "error: " in job.stdout
    assert "Traceback" not in job.stdout


def test_the_pods_that_submit_end_with_what_became_of_the_job(system: System) -> None:
    # the ledger's clock, as rendered: no request is pending, so there is nothing to do
    clock = system.cluster.start(system.templates["next-request"])
    # and a sweep on a cluster of its own, as rendered, with a recipe that cannot be trained; its head may answer later than it asks
    recipe = system.cluster.documents.get("ConfigMap", NAMESPACE, "recipe")
    assert recipe is not None
    recipe["data"]["recipe.yaml"] = recipe["data"]["bad.yaml"]
    head, submitter = (system.cluster.start(system.templates[name]) for name in ("sweep-head", "sweep-submitter"))
    assert clock.wait_completed(JOB_SECONDS) == 0, clock.logs()
    assert submitter.wait_completed(JOB_SECONDS) != 0, submitter.logs()
    assert "error: " in submitter.logs()
    for pod in (clock, submitter, head):
        system.cluster.kill(pod)


def test_connections_of_the_running_system_are_those_that_policies_allow(system: System) -> None:
    running = system.pods
    network = Network(system.cluster.documents.all)
    listening = {
        pod.name: [port for _, port, _ in container_ports(network.pods[pod.template]) if port != AUTOSCALER_PORT]
        for pod in running
    }
    targets = {
        one.name: [(other, port) for other in running if other is not one for port in listening[other.name]] for one in running
    }
    made = reached(targets, {pod.name: pod for pod in running})
    assert made == {
        (one.name, other.name, port)
        for one in running
        for other, port in targets[one.name]
        if network.allowed(one.template, other.template, port)
    }
    assert ("submitter", "mlflow", 5000) not in made
