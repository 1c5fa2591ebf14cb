"""What KubeRay 1.7 refuses, or takes in silence and does otherwise, about clusters; no schema says so."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from k8s.check.bundle import Bundle
from k8s.check.kuberay import RayCluster
from k8s.check.kuberay_start import ray_start_flags
from k8s.check.rule import Wrong, table
from k8s.check.schemas import nearest

__all__ = ["RULES", "numbers"]

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
"""Services get names with an ending, and jobs and services of Ray append six characters before that."""
_RESOURCE_FLAGS = frozenset({"num-cpus", "num-gpus", "memory", "resources"})
_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")


def _groups(cluster: RayCluster) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield f"{cluster.owner} headGroupSpec", cluster.spec["headGroupSpec"]
    for group in cluster.spec.get("workerGroupSpecs") or []:
        yield f"{cluster.owner} workerGroupSpecs[{group.get('groupName')}]", group


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers, so that 2.9 comes before 2.10."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def ray_names(bundle: Bundle) -> Wrong:
    """Names become parts of service names; one that is too long is cut off there, and two may become one."""
    for cluster in bundle.clusters:
        longest = _LONGEST[cluster.kind]
        if not _NAME.match(cluster.stem) or len(cluster.stem) > longest:
            yield (
                cluster.owner,
                f"a name must be lower case, begin with a letter and have at most {longest} characters, got {cluster.stem!r}; rename it",
            )
        names = [str(group.get("groupName")) for _, group in list(_groups(cluster))[1:]]
        for name in sorted({name for name in names if names.count(name) > 1 or not _NAME.match(name)}):
            yield cluster.owner, f"names of worker groups must be lower case and differ, got {name!r}; rename one"


def ray_container_first(bundle: Bundle) -> Wrong:
    """KubeRay starts Ray in the first container of a pod, whatever it is called."""
    for cluster in bundle.clusters:
        for where, group in _groups(cluster):
            first = group["template"]["spec"]["containers"][0]
            if first.get("name") != "ray":
                yield where, f"the first container must be Ray's, got {first.get('name')!r}; put `ray` first"


def ray_replicas(bundle: Bundle) -> Wrong:
    """Without an autoscaler both bounds have to be written; with one, replicas outside of them are changed at once."""
    for cluster in bundle.clusters:
        for where, group in list(_groups(cluster))[1:]:
            found = [group.get(key) for key in ("minReplicas", "replicas", "maxReplicas")]
            if None in found or found != sorted(found, key=lambda number: number or 0):
                yield where, f"minReplicas <= replicas <= maxReplicas must be written and hold, got {found}; correct them"


def ray_start_params(bundle: Bundle) -> Wrong:
    """The operator wants text, one place for resources and one for labels, and sets some flags itself."""
    for cluster in bundle.clusters:
        for where, group in _groups(cluster):
            params = group.get("rayStartParams") or {}
            for flag, value in params.items():
                if not isinstance(value, str):
                    yield where, f"rayStartParams must be text, got {flag}: {value!r}; quote it"
            if "labels" in params:
                yield (
                    where,
                    f"labels must stand in the group's `labels`, got rayStartParams.labels {params['labels']!r}; move them",
                )
            both = sorted(_RESOURCE_FLAGS & params.keys())
            if both and group.get("resources"):
                yield where, f"resources must stand in rayStartParams or in `resources`, got both ({', '.join(both)}); drop one"


def ray_start_flags_exist(bundle: Bundle) -> Wrong:
    """Each key of rayStartParams becomes a flag of `ray start`, which ends at one that it does not have: the pod restarts for ever."""
    known = ray_start_flags()
    for cluster in bundle.clusters:
        for where, group in _groups(cluster):
            for name in (group.get("rayStartParams") or {}) if known else ():
                if name not in known:
                    yield where, f"rayStartParams must be flags of `ray start`, got {name!r}{nearest(name, known)}; correct it"


def ray_authentication(bundle: Bundle) -> Wrong:
    """The dashboard runs what it is given: without a token everybody who reaches it owns the cluster."""
    for cluster in bundle.clusters:
        options = cluster.spec.get("authOptions") or {}
        if options.get("mode") != "token" or not options.get("secretName"):
            yield cluster.owner, f"authOptions must have mode token and name its Secret, got {options}; write both"
        elif numbers(str(cluster.spec.get("rayVersion", "0"))) < (2, 52, 0):
            yield cluster.owner, f"tokens need rayVersion 2.52.0 or later, got {cluster.spec.get('rayVersion')!r}; raise it"
        if options.get("enableK8sTokenAuth") and cluster.kind != "RayCluster":
            yield cluster.owner, f"enableK8sTokenAuth must be left to RayClusters, got it in a {cluster.kind}; remove it"


def ray_alpha_fields(bundle: Bundle) -> Wrong:
    """These pass the schema, and an operator with default feature gates refuses them."""
    for cluster in bundle.clusters:
        options = cluster.spec.get("gcsFaultToleranceOptions") or {}
        found = [name for name in _GATED if name in cluster.spec]
        found += (
            ["gcsFaultToleranceOptions.backend: rocksdb"] if options.get("backend") == "rocksdb" or "storage" in options else []
        )
        for name in found:
            yield cluster.owner, f"a field must not need an alpha feature gate, got {name}; do without it"
    for document in bundle.of("RayCronJob"):
        yield (
            f"RayCronJob/{document['metadata'].get('name')}",
            "a kind must not need an alpha feature gate, got RayCronJob; write a CronJob",
        )


def ray_autoscaler(bundle: Bundle) -> Wrong:
    """Pods of the second autoscaler are never restarted, and its version is KubeRay's to set: what says otherwise is overwritten or refused."""
    for cluster in bundle.clusters:
        if not cluster.autoscaler:
            continue
        options = cluster.spec.get("autoscalerOptions") or {}
        if options.get("version") != "v2":
            yield cluster.owner, f"autoscalerOptions.version must be v2 and be written, got {options.get('version')!r}; write it"
        for where, group in _groups(cluster):
            spec = group["template"]["spec"]
            if spec.get("restartPolicy", "Never") != "Never":
                yield where, f"restartPolicy must be left to the autoscaler, got {spec['restartPolicy']!r}; remove it"
            if any(variable["name"] == "RAY_enable_autoscaler_v2" for variable in spec["containers"][0].get("env") or []):
                yield where, "RAY_enable_autoscaler_v2 must be left to KubeRay, got a variable of that name; remove it"


def ray_idle_timeout(bundle: Bundle) -> Wrong:
    """Only an autoscaler of the second version looks at a group's own timeout."""
    for cluster in bundle.clusters:
        for where, group in list(_groups(cluster))[1:]:
            if "idleTimeoutSeconds" in group and cluster.autoscaler != "v2":
                yield where, f"idleTimeoutSeconds of a group needs autoscaler v2, got autoscaler {cluster.autoscaler}; remove it"


def ray_fault_tolerance(bundle: Bundle) -> Wrong:
    """An outside store is named in one place; the older ways to name it are refused beside it, and switch it on by accident without it."""
    for cluster in bundle.clusters:
        head = cluster.spec["headGroupSpec"]
        names = {variable["name"] for variable in head["template"]["spec"]["containers"][0].get("env") or []}
        found = sorted(names & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"})
        found += sorted({"redis-password", "redis-username"} & (head.get("rayStartParams") or {}).keys())
        found += ["ray.io/ft-enabled"] if "ray.io/ft-enabled" in (cluster.document["metadata"].get("annotations") or {}) else []
        if found:
            yield (
                cluster.owner,
                f"an outside store must be named by gcsFaultToleranceOptions alone, got {', '.join(found)}; move it there",
            )
        if cluster.spec.get("gcsFaultToleranceOptions") and cluster.kind == "RayJob":
            yield (
                cluster.owner,
                "a RayJob must not ask for fault tolerance, got gcsFaultToleranceOptions; its driver is lost with the head anyway: drop it",
            )


RULES = table(
    ray_names, ray_container_first, ray_replicas, ray_start_params, ray_start_flags_exist, ray_authentication, ray_alpha_fields, ray_autoscaler,
    ray_idle_timeout, ray_fault_tolerance,
)  # fmt: skip
