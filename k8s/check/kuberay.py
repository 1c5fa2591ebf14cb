"""What KubeRay 1.7 makes of a Ray cluster: head and worker pods, with everything it adds to their templates.

Written from the behaviour of the operator, so that a policy meets the containers that nobody wrote: `wait-gcs-ready`, the autoscaler, the
submitter. Alpha features, which are off by default, are left out; rules refuse them.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from k8s.check.kuberay_start import DASHBOARD_AGENT_PORT, GCS_PORT, METRICS_PORT, ray_start_command, start_params
from k8s.check.pod import Container, Pod, add_env
from k8s.check.quantities import quantity

__all__ = ["BASH", "DOMAIN", "VERSION", "RayCluster", "auth_env", "identifier", "pods_of_cluster"]

VERSION = "v1.7.0"
DOMAIN = "cluster.local"
BASH = ["/bin/bash", "-c", "--"]
_OPEN_FILES = "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}"
_NO_OVERRIDE = frozenset({"ray.io/node-type", "ray.io/group", "ray.io/cluster"})
_RAYLET_HEALTH = f"wget --tries 1 -T 2 -q -O- http://localhost:{DASHBOARD_AGENT_PORT}/api/local_raylet_healthz | grep success"
_SERVE_HEALTH = "wget --tries 1 -T 10 -q -O- http://localhost:{}/-/healthz | grep success"


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster to be: written as such, or inside a RayJob or RayService."""

    name: str
    """Its name in the cluster; jobs and services append something random to theirs."""
    stem: str
    """What its pods are called here."""
    namespace: str
    kind: str
    """Kind of what asks for it: RayCluster, RayJob or RayService."""
    owner: str
    spec: Mapping[str, Any]
    document: Mapping[str, Any]

    @property
    def head_service(self) -> str:
        """Name of the service that KubeRay puts before its head."""
        return f"{self.name}-head-svc"

    @property
    def head_address(self) -> str:
        """Host name by which workers find the head."""
        return f"{self.head_service}.{self.namespace}.svc.{DOMAIN}"

    @property
    def gcs_port(self) -> str:
        """Port of the head that nodes and drivers connect to."""
        return str((self.spec["headGroupSpec"].get("rayStartParams") or {}).get("port", GCS_PORT))

    @property
    def autoscaler(self) -> str | None:
        """Version of the autoscaler, "v1" or "v2"; None where there is none."""
        if not self.spec.get("enableInTreeAutoscaling"):
            return None
        return str((self.spec.get("autoscalerOptions") or {}).get("version", "v2"))


def identifier(cluster: str, node_type: str) -> str:
    """The value of label `ray.io/identifier`."""
    return f"{cluster}-{node_type}"


def pods_of_cluster(cluster: RayCluster) -> Iterator[Pod]:
    """The head, and a pod for each worker group."""
    yield _head(cluster)
    for group in cluster.spec.get("workerGroupSpecs") or []:
        yield _worker(cluster, group)


def _head(cluster: RayCluster) -> Pod:
    group = cluster.spec["headGroupSpec"]
    params = start_params(group, head=True, address=None, autoscaling=bool(cluster.autoscaler))
    spec = copy.deepcopy(group["template"]["spec"])
    ray = spec["containers"][0]
    if cluster.autoscaler:
        spec.setdefault("serviceAccountName", cluster.name)
        spec["containers"].append(_autoscaler_container(cluster, ray))
        add_env(ray, RAY_enable_autoscaler_v2="true" if cluster.autoscaler == "v2" else "false")
        if cluster.autoscaler == "v2":
            spec["restartPolicy"] = "Never"
    annotations = {"ray.io/ft-enabled": "true" if cluster.spec.get("gcsFaultToleranceOptions") else "false"}
    _fault_tolerance(cluster, ray, head=True)
    _finish(cluster, spec, params, head=True)
    return _pod(cluster, group, f"{cluster.stem}-head", "headgroup", spec, annotations, 1)


def _worker(cluster: RayCluster, group: Mapping[str, Any]) -> Pod:
    address = f"{cluster.head_address}:{cluster.gcs_port}"
    params = start_params(group, head=False, address=address, autoscaling=False)
    spec = copy.deepcopy(group["template"]["spec"])
    ray = spec["containers"][0]
    spec.setdefault("initContainers", []).append(_wait_container(ray, address))
    _fault_tolerance(cluster, ray, head=False)
    if cluster.autoscaler:
        spec["restartPolicy"] = "Never"
    _finish(cluster, spec, params, head=False)
    replicas = max(int(group.get("replicas", 0)), int(group.get("minReplicas", 0))) * int(group.get("numOfHosts", 1))
    return _pod(cluster, group, f"{cluster.stem}-worker-{group['groupName']}", group["groupName"], spec, {}, replicas)


def _pod(
    cluster: RayCluster,
    group: Mapping[str, Any],
    name: str,
    label: str,
    spec: Container,
    annotations: Mapping[str, str],
    replicas: int,
) -> Pod:
    node_type: Literal["head", "worker"] = "head" if label == "headgroup" else "worker"
    metadata = group["template"].get("metadata") or {}
    own = {**(metadata.get("labels") or {}), **(group.get("labels") or {})}
    labels = {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": cluster.name,
        "ray.io/node-type": node_type,
        "ray.io/group": label,
        "ray.io/identifier": identifier(cluster.name, node_type),
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        **{key: value for key, value in own.items() if key not in _NO_OVERRIDE},
    }
    if cluster.kind == "RayService":
        outside = node_type == "head" and cluster.document["spec"].get("excludeHeadPodFromServeSvc", False)
        labels["ray.io/serve"] = "false" if outside else "true"
    return Pod(
        name=name, namespace=cluster.namespace, owner=cluster.owner, role=node_type, labels=labels,
        annotations={**annotations, **(metadata.get("annotations") or {})}, spec=spec, replicas=replicas, document=cluster.document,
    )  # fmt: skip


def _finish(cluster: RayCluster, spec: Container, params: Mapping[str, str], *, head: bool) -> None:
    """What both kinds of pods get, in the operator's order."""
    ray = spec["containers"][0]
    if not any(port.get("name") == "metrics" for port in ray.get("ports") or []):
        ray.setdefault("ports", []).append({"name": "metrics", "containerPort": METRICS_PORT})
    for container in (ray, *(found for found in spec.get("initContainers") or [] if found["name"] == "wait-gcs-ready")):
        add_env(container, **auth_env(cluster.name, cluster.spec))
    if "plasma-directory" not in params:
        _add_empty_dir(spec, ray, "shared-mem", "/dev/shm", memory=True)
    if head and cluster.autoscaler:
        for container in (ray, spec["containers"][-1]):
            _add_empty_dir(spec, container, "ray-logs", "/tmp/ray", memory=False)
    command = ray_start_command(params, head=head)
    own = [*(ray.get("command") or []), *(ray.get("args") or [])]
    overwrite = (cluster.document["metadata"].get("annotations") or {}).get("ray.io/overwrite-container-cmd") == "true"
    if not overwrite and "ray start" not in " ".join(own):
        before = "".join(f" {word} " for word in own)
        ray["command"] = list(BASH)
        ray["args"] = [f"{before} && {_OPEN_FILES}; {command}" if own else f"{_OPEN_FILES}; {command}"]
    for container in spec.get("initContainers") or []:
        add_env(container, FQ_RAY_IP="" if head else cluster.head_address, RAY_IP="" if head else cluster.head_service)
    _ray_env(cluster, ray, command, head=head)
    _probes(cluster, ray, params, head=head)


def auth_env(cluster: str, spec: Mapping[str, Any]) -> dict[str, str | dict[str, Any]]:
    """The variables by which Ray's parts of a cluster show and ask for its token; none where authentication is off."""
    options = spec.get("authOptions") or {}
    if options.get("mode") != "token":
        return {}
    reference = {"secretKeyRef": {"name": options.get("secretName") or cluster, "key": "auth_token"}}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": reference}


def _ray_env(cluster: RayCluster, ray: Container, command: str, *, head: bool) -> None:
    def label(name: str) -> dict[str, Any]:
        return _field(f"metadata.labels['{name}']")

    address = "127.0.0.1" if head else cluster.head_address
    if not head:
        add_env(ray, FQ_RAY_IP=cluster.head_address, RAY_IP=cluster.head_service)
    add_env(
        ray,
        RAY_CLUSTER_NAME=label("ray.io/cluster"),
        RAY_CLUSTER_NAMESPACE=_field("metadata.namespace"),
        RAY_CLOUD_INSTANCE_ID=_field("metadata.name"),
        RAY_NODE_TYPE_NAME=label("ray.io/group"),
        KUBERAY_GEN_RAY_START_CMD=command,
        RAY_PORT=cluster.gcs_port,
    )
    if cluster.kind == "RayService":
        add_env(
            ray,
            RAY_timeout_ms_task_wait_for_death_info="0",
            RAY_gcs_server_request_timeout_seconds="5",
            RAY_SERVE_KV_TIMEOUT_S="5",
        )
    add_env(ray, RAY_ADDRESS=f"{address}:{cluster.gcs_port}", RAY_USAGE_STATS_KUBERAY_IN_USE="1")
    if head:
        add_env(ray, RAY_USAGE_STATS_EXTRA_TAGS=f"kuberay_version={VERSION};kuberay_crd={cluster.kind}")
    add_env(ray, RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE="1")


def _field(path: str) -> dict[str, Any]:
    return {"fieldRef": {"fieldPath": path}}


def _probes(cluster: RayCluster, ray: Container, params: Mapping[str, str], *, head: bool) -> None:
    """Ray 2.53 and later answer for the whole node at one address; workers of a service are asked for their proxy as well."""
    ask = {"httpGet": {"path": "/api/healthz", "port": int(params["dashboard-agent-listen-port"])}}
    timing = {"timeoutSeconds": 5 if head else 2, "periodSeconds": 5, "successThreshold": 1}
    ray.setdefault("livenessProbe", {**ask, **timing, "initialDelaySeconds": 30, "failureThreshold": 120})
    if "readinessProbe" in ray:
        return
    ray["readinessProbe"] = {**ask, **timing, "initialDelaySeconds": 10, "failureThreshold": 10}
    if cluster.kind == "RayService" and not head:
        port = next((port["containerPort"] for port in ray.get("ports") or [] if port.get("name") == "serve"), 8000)
        both = f"{_RAYLET_HEALTH} && {_SERVE_HEALTH.format(port)}"
        ray["readinessProbe"] = {
            "exec": {"command": ["bash", "-c", both]},
            **timing,
            "initialDelaySeconds": 10,
            "failureThreshold": 1,
        }


def _wait_container(ray: Container, address: str) -> Container:
    """The init container of workers, a copy of the Ray container that waits until the head answers."""
    resources = {"cpu": "200m", "memory": "256Mi"}
    copied = ("image", "imagePullPolicy", "securityContext", "env", "volumeMounts")
    kept: Container = {key: copy.deepcopy(ray[key]) for key in copied if key in ray}
    loop = f'until ray health-check --address {address} > /dev/null 2>&1; do echo "Waiting for GCS to be ready."; sleep 5; done'
    return {
        "name": "wait-gcs-ready", "command": list(BASH), "args": [loop],
        "resources": {"limits": dict(resources), "requests": dict(resources)}, **kept,
    }  # fmt: skip


def _autoscaler_container(cluster: RayCluster, ray: Container) -> Container:
    """The sidecar of a head: security context and all but image and resources come from `autoscalerOptions` alone."""
    options = cluster.spec.get("autoscalerOptions") or {}
    resources = {"cpu": "500m", "memory": "512Mi"}
    command = "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
    container: Container = {
        "name": "autoscaler", "image": ray.get("image"), "imagePullPolicy": "IfNotPresent", "command": list(BASH), "args": [command],
        "resources": {"limits": dict(resources), "requests": dict(resources)},
    }  # fmt: skip
    add_env(
        container,
        RAY_CLUSTER_NAME=_field("metadata.labels['ray.io/cluster']"),
        RAY_CLUSTER_NAMESPACE=_field("metadata.namespace"),
        RAY_HEAD_POD_NAME=_field("metadata.name"),
        KUBERAY_CRD_VER="v1",
        **auth_env(cluster.name, cluster.spec),
    )
    for key in ("resources", "image", "imagePullPolicy", "securityContext", "command", "args"):
        if options.get(key):
            container[key] = copy.deepcopy(options[key])
    for key in ("env", "envFrom", "volumeMounts"):
        if options.get(key):
            container.setdefault(key, []).extend(copy.deepcopy(options[key]))
    return container


def _fault_tolerance(cluster: RayCluster, ray: Container, *, head: bool) -> None:
    options = cluster.spec.get("gcsFaultToleranceOptions")
    if not options:
        return
    if not head:
        add_env(ray, RAY_gcs_rpc_server_reconnect_timeout_s="600")
        return
    add_env(
        ray,
        RAY_external_storage_namespace=options.get("externalStorageNamespace") or "uid",
        RAY_REDIS_ADDRESS=options.get("redisAddress", ""),
    )
    for key, name in (("redisUsername", "REDIS_USERNAME"), ("redisPassword", "REDIS_PASSWORD")):
        if options.get(key):
            add_env(ray, **{name: options[key].get("value") or options[key]["valueFrom"]})


def _add_empty_dir(spec: Container, container: Container, name: str, path: str, *, memory: bool) -> None:
    """Mount an emptyDir where nothing is mounted; one of memory is as large as the container's memory."""
    if any(mount["mountPath"] == path for mount in container.get("volumeMounts") or []):
        return
    if not any(volume["name"] == name for volume in spec.get("volumes") or []):
        resources = container.get("resources") or {}
        size = (resources.get("limits") or {}).get("memory") or (resources.get("requests") or {}).get("memory")
        source = {"medium": "Memory", **({"sizeLimit": str(size)} if size and quantity(size) else {})} if memory else {}
        spec.setdefault("volumes", []).append({"name": name, "emptyDir": source})
    container.setdefault("volumeMounts", []).append({"name": name, "mountPath": path})
