"""Effective pods: what KubeRay and the workload controllers add to what is written."""

import itertools
from typing import Any

import pytest

from k8s.check.pods import Pod, effective_pods
from tests.k8s import sample


def pods(*documents: dict[str, Any]) -> dict[str, Pod]:
    return {pod.name: pod for pod in effective_pods(documents)}


def env(container: dict[str, Any]) -> dict[str, Any]:
    names = [variable["name"] for variable in container["env"]]
    assert len(set(names)) == len(names)
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


@pytest.fixture
def head() -> Pod:
    return pods(sample.cluster())["unlearn-head"]


@pytest.fixture
def worker() -> Pod:
    return pods(sample.cluster())["unlearn-worker-cpu"]


def test_the_head_starts_ray_with_sorted_flags(head: Pod) -> None:
    ray = head.spec["containers"][0]
    assert ray["command"] == ["/bin/bash", "-c", "--"]
    assert " ".join(ray["args"][0].split()) == (
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --head --block --dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 "
        "--include-dashboard=true --memory=2147483648 --metrics-export-port=8080 --no-monitor --num-cpus=0 --object-store-memory=200000000"
    )


def test_a_worker_starts_ray_with_its_limits_rounded_up(worker: Pod) -> None:
    assert " ".join(worker.spec["containers"][0]["args"][0].split()).endswith(
        "ray start --address=unlearn-head-svc.unlearning.svc.cluster.local:6379 --block --dashboard-agent-listen-port=52365 "
        "--memory=1073741824 --metrics-export-port=8080 --num-cpus=2 --num-gpus=2"
    )
    assert worker.replicas == 2


def test_resources_of_a_group_take_the_place_of_limits() -> None:
    document = sample.cluster()
    document["spec"]["workerGroupSpecs"][0] |= {"resources": {"CPU": "3", "memory": "1Mi", "slot": "1"}, "labels": {"zone": "a"}}
    args = pods(document)["unlearn-worker-cpu"].spec["containers"][0]["args"][0]
    assert {"--num-cpus=3", "--memory=1048576", "--labels=zone=a", "--resources='{\"slot\":1.0}'"} <= set(args.split())
    assert pods(document)["unlearn-worker-cpu"].labels["zone"] == "a"


def test_a_command_of_ones_own_runs_before_ray_and_one_that_starts_ray_stays() -> None:
    document = sample.cluster()
    container = document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container |= {"command": ["ls"], "args": ["/app"]}
    assert pods(document)["unlearn-head"].spec["containers"][0]["args"][0].startswith(" ls  /app  && ulimit")
    container |= {"command": ["bash", "-c"], "args": ["exec ray start --head"]}
    assert pods(document)["unlearn-head"].spec["containers"][0]["args"] == ["exec ray start --head"]


def test_labels_are_kuberays_where_it_insists(head: Pod, worker: Pod) -> None:
    assert head.labels == {
        "ray.io/is-ray-node": "yes", "ray.io/cluster": "unlearn", "ray.io/node-type": "head", "ray.io/group": "headgroup",
        "ray.io/identifier": "unlearn-head", "app.kubernetes.io/name": "kuberay", "app.kubernetes.io/created-by": "kuberay-operator", "part": "head",
    }  # fmt: skip
    assert (worker.labels["ray.io/node-type"], worker.labels["ray.io/group"]) == ("worker", "cpu")
    assert (head.role, worker.role, head.owner) == ("head", "worker", "RayCluster/unlearn")


def test_the_environment_that_kuberay_adds(head: Pod, worker: Pod) -> None:
    token = {"secretKeyRef": {"name": "unlearn-token", "key": "auth_token"}}
    ray, other = env(head.spec["containers"][0]), env(worker.spec["containers"][0])
    for variables in (ray, other, env(worker.spec["initContainers"][0]), env(head.spec["containers"][1])):
        assert (variables["RAY_AUTH_MODE"], variables["RAY_AUTH_TOKEN"]) == ("token", token)
    assert (ray["RAY_ADDRESS"], ray["RAY_PORT"], ray["RAY_enable_autoscaler_v2"]) == ("127.0.0.1:6379", "6379", "true")
    assert other["RAY_ADDRESS"] == "unlearn-head-svc.unlearning.svc.cluster.local:6379"
    assert (other["FQ_RAY_IP"], other["RAY_IP"]) == ("unlearn-head-svc.unlearning.svc.cluster.local", "unlearn-head-svc")
    assert ray["RAY_CLOUD_INSTANCE_ID"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert ray["KUBERAY_GEN_RAY_START_CMD"].startswith("ray start --head ")


def test_workers_wait_in_a_copy_of_their_container(worker: Pod) -> None:
    wait = worker.spec["initContainers"][0]
    assert wait["name"] == "wait-gcs-ready"
    assert "ray health-check --address unlearn-head-svc.unlearning.svc.cluster.local:6379" in wait["args"][0]
    assert wait["securityContext"] == {"readOnlyRootFilesystem": True}
    assert wait["resources"]["limits"] == {"cpu": "200m", "memory": "256Mi"}
    assert env(wait)["HOME"] == "/tmp/home"
    assert "RAY_PORT" not in env(wait)  # the copy is taken before the container's own variables are added


def test_the_autoscaler_stands_beside_the_head(head: Pod) -> None:
    ray, autoscaler = head.spec["containers"]
    assert (autoscaler["name"], autoscaler["image"], head.spec["restartPolicy"]) == ("autoscaler", ray["image"], "Never")
    assert autoscaler["securityContext"] == {"allowPrivilegeEscalation": False}
    for container in (ray, autoscaler):
        assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in container["volumeMounts"]
    document = sample.cluster()
    del document["spec"]["enableInTreeAutoscaling"]
    alone = pods(document)["unlearn-head"]
    assert [container["name"] for container in alone.spec["containers"]] == ["ray"]
    assert "restartPolicy" not in alone.spec
    assert "--no-monitor" not in alone.spec["containers"][0]["args"][0]


def test_shared_memory_is_mounted_where_nobody_did(head: Pod, worker: Pod) -> None:
    assert [volume["name"] for volume in head.spec["volumes"]] == ["dshm", "ray-logs"]
    assert worker.spec["volumes"] == [{"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}]
    assert {"name": "shared-mem", "mountPath": "/dev/shm"} in worker.spec["containers"][0]["volumeMounts"]


def test_probes_and_the_metrics_port(head: Pod, worker: Pod) -> None:
    for pod in (head, worker):
        ray = pod.spec["containers"][0]
        assert ray["livenessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}
        assert {"name": "metrics", "containerPort": 8080} in ray["ports"]
    served = pods(sample.service())["champion-worker-cpu"].spec["containers"][0]
    assert "wget" in served["readinessProbe"]["exec"]["command"][2]
    assert served["livenessProbe"]["httpGet"]["port"] == 52365


def test_a_job_brings_a_cluster_of_a_random_name_and_a_submitter() -> None:
    found = pods(sample.job(runtimeEnvYAML="env_vars: {A: b}"))
    assert list(found) == ["sweep-head", "sweep-worker-cpu", "sweep-submitter"]
    assert found["sweep-head"].labels["ray.io/cluster"].startswith("sweep-")
    container = found["sweep-submitter"].spec["containers"][0]
    assert container["command"] == ["/bin/bash", "-ce", "--"]
    script = container["args"][0]
    assert '--runtime-env-json "{\\"env_vars\\":{\\"A\\":\\"b\\"}}"' in script
    assert "-- python /app/pipelines/sweep.py ;" in script
    assert script.index("ray job status") < script.index("ray job submit") < script.index("ray job logs")
    assert "securityContext" not in container
    variables = env(container)
    assert variables["RAY_DASHBOARD_ADDRESS"].endswith("-head-svc.unlearning.svc.cluster.local:8265")
    assert variables["RAY_AUTH_MODE"] == "token"
    assert "sweep-submitter" not in pods(sample.job(submissionMode="HTTPMode"))


def test_a_template_of_ones_own_for_the_submitter_is_kept() -> None:
    template: dict[str, Any] = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "x", "image": "y", "command": ["mine"]}]},
    }
    pod = pods(sample.job(submitterPodTemplate=template))["sweep-submitter"]
    assert pod.spec["containers"][0]["command"] == ["mine"]
    assert pod.labels["a"] == "b"
    assert "RAY_JOB_SUBMISSION_ID" in env(pod.spec["containers"][0])
    assert "env" not in template["spec"]["containers"][0]


def test_core_workloads() -> None:
    found = pods(*sample.documents())
    assert (found["mlflow"].replicas, found["mlflow"].owner, found["mlflow"].labels["app"]) == (2, "Deployment/mlflow", "mlflow")
    assert found["postgres"].spec["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "data-postgres-0"}}]
    assert found["next-request"].spec["containers"][0]["name"] == "submit"
    assert all(pod.namespace == "unlearning" for pod in found.values())


def test_fault_tolerance_reaches_head_and_workers() -> None:
    document = sample.cluster()
    document["spec"]["gcsFaultToleranceOptions"] = {
        "redisAddress": "redis:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "r", "key": "k"}}},
    }
    found = pods(document)
    variables = env(found["unlearn-head"].spec["containers"][0])
    assert (variables["RAY_REDIS_ADDRESS"], variables["REDIS_PASSWORD"]) == (
        "redis:6379",
        {"secretKeyRef": {"name": "r", "key": "k"}},
    )
    assert found["unlearn-head"].annotations["ray.io/ft-enabled"] == "true"
    assert env(found["unlearn-worker-cpu"].spec["containers"][0])["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"


def test_the_documents_are_left_as_they_were() -> None:
    before, after = sample.documents(), sample.documents()
    for _ in itertools.repeat(None, 2):
        effective_pods(after)
    assert before == after
