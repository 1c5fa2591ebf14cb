"""What KubeRay 1.7 refuses about jobs and services, and how ours are run."""

import re
from typing import Any

import yaml

from k8s.check.bundle import Bundle
from k8s.check.pods import title
from k8s.check.rule import Wrong, table
from k8s.check.strict_yaml import Document

__all__ = ["QUEUE", "RULES"]

QUEUE = "kueue.x-k8s.io/queue-name"
_SHELL = re.compile(r"[;&|$`<>\\\n]")
_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
_ORDER = {"DeleteWorkers": 0, "DeleteCluster": 1, "DeleteSelf": 2}


def _queued(job: Document) -> bool:
    return bool((job["metadata"].get("labels") or {}).get(QUEUE))


def job_is_cleaned_up(bundle: Bundle) -> Wrong:
    """A cluster that stays after its job costs its GPUs; Kueue suspends jobs, which KubeRay allows only where the cluster goes."""
    for job in bundle.of("RayJob"):
        spec = job["spec"]
        shuts, rules = bool(spec.get("shutdownAfterJobFinishes")), (spec.get("deletionStrategy") or {}).get("deletionRules")
        if shuts and spec.get("deletionStrategy"):
            yield title(job), "shutdownAfterJobFinishes and deletionStrategy exclude each other, got both; drop one"
        elif not shuts and not rules and not spec.get("clusterSelector"):
            yield (
                title(job),
                f"a job's cluster must go with it, got shutdownAfterJobFinishes {spec.get('shutdownAfterJobFinishes')!r}; set it to true",
            )
        elif not shuts and (spec.get("suspend") or _queued(job)):
            yield (
                title(job),
                "a job that may be suspended, as one in a queue, needs shutdownAfterJobFinishes, got deletionRules; take the other",
            )
        if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts:
            yield (
                title(job),
                f"ttlSecondsAfterFinished needs shutdownAfterJobFinishes, got {spec['ttlSecondsAfterFinished']} alone; set both",
            )


def job_deletion_rules(bundle: Bundle) -> Wrong:
    """What is deleted first has to be inside what is deleted later; workers of an autoscaler come back."""
    for job in bundle.of("RayJob"):
        rules = (job["spec"].get("deletionStrategy") or {}).get("deletionRules") or []
        waits: dict[str, dict[str, int]] = {}
        for rule in rules:
            condition = rule.get("condition") or {}
            key = str(condition.get("jobStatus") or condition.get("jobDeploymentStatus"))
            waits.setdefault(key, {})[rule["policy"]] = condition.get("ttlSeconds", 0)
        for status, found in waits.items():
            seconds = [found[policy] for policy in sorted(found.keys() & _ORDER.keys(), key=_ORDER.__getitem__)]
            if seconds != sorted(seconds):
                yield (
                    title(job),
                    f"workers must be deleted before clusters, clusters before the job, got {found} for {status}; order the times",
                )
        cluster = job["spec"].get("rayClusterSpec") or {}
        if cluster.get("enableInTreeAutoscaling") and any(rule["policy"] == "DeleteWorkers" for rule in rules):
            yield title(job), "DeleteWorkers must not meet an autoscaler, got both; delete the cluster"


def job_deadlines(bundle: Bundle) -> Wrong:
    """A job that never ends, or never starts, holds its nodes until somebody looks."""
    for job in bundle.of("RayJob"):
        for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
            value = job["spec"].get(field)
            if not isinstance(value, int) or value <= 0:
                yield title(job), f"{field} must be a positive number, got {value!r}; set it"


def job_entrypoint(bundle: Bundle) -> Wrong:
    """KubeRay pastes the entrypoint into a shell script without quotes."""
    for job in bundle.of("RayJob"):
        found = _SHELL.search(str(job["spec"].get("entrypoint", "")).strip())
        if found:
            yield title(job), f"entrypoint must be plain words, got {found.group()!r} in it; put shell into a script"


def job_runtime_environment(bundle: Bundle) -> Wrong:
    """Everything is in the image: what is installed when a job starts is neither locked nor reachable."""
    for job in bundle.of("RayJob"):
        try:
            environment = yaml.safe_load(job["spec"].get("runtimeEnvYAML") or "{}")
        except yaml.YAMLError as error:
            yield title(job), f"runtimeEnvYAML must be YAML, got {' '.join(str(error).split())}; mend it"
            continue
        for key in sorted({"pip", "uv", "conda", "image_uri", "container"} & set(environment)):
            yield title(job), f"runtimeEnvYAML must install nothing, got `{key}`; put it into the image"


def job_submission(bundle: Bundle) -> Wrong:
    """Modes exclude fields; and the submitter that KubeRay writes by itself is a pod that restricted namespaces refuse."""
    for job in bundle.of("RayJob"):
        spec = job["spec"]
        mode = spec.get("submissionMode", "K8sJobMode")
        wrong = {
            "SidecarMode": [field for field in ("submitterPodTemplate", "submitterConfig", "clusterSelector") if field in spec],
            "InteractiveMode": ["backoffLimit"] if "backoffLimit" in spec else [],
        }.get(mode, [])
        wrong += [
            field for field in ("suspend", "backoffLimit", "rayClusterSpec") if spec.get("clusterSelector") and field in spec
        ]
        if mode not in _MODES:
            yield title(job), f"submissionMode must be one of {', '.join(_MODES)}, got {mode!r}; correct it"
        for field in wrong:
            yield (
                title(job),
                f"{mode}{' with clusterSelector' if spec.get('clusterSelector') else ''} must not have {field}, got it; remove it",
            )
        if mode == "K8sJobMode" and "submitterPodTemplate" not in spec:
            yield title(job), "K8sJobMode must have a submitterPodTemplate with a security context, got none; write one"


def job_retries(bundle: Bundle) -> Wrong:
    """Each retry of a RayJob is a new cluster, perhaps while the pods of the old one still write: ours continue by themselves."""
    for job in bundle.of("RayJob"):
        if job["spec"].get("backoffLimit", 0) != 0:
            yield (
                title(job),
                f"backoffLimit of a RayJob must be 0, got {job['spec']['backoffLimit']}; give the same job again instead",
            )


def service_configuration(bundle: Bundle) -> Wrong:
    """The operator hands serveConfigV2 on as it is, and makes the service from the port that is called `serve`."""
    for service in bundle.of("RayService"):
        try:
            config: Any = yaml.safe_load(service["spec"].get("serveConfigV2") or "")
        except yaml.YAMLError:
            config = None
        applications = config.get("applications") if isinstance(config, dict) else None
        if (
            not isinstance(applications, list)
            or not applications
            or not all(
                isinstance(application, dict) and application.get("name") and application.get("import_path")
                for application in applications
            )
        ):
            yield (
                title(service),
                f"serveConfigV2 must be YAML with applications that have name and import_path, got {str(config)[:80]!r}; mend it",
            )
        spec = service["spec"]["rayClusterConfig"]
        for group in (spec["headGroupSpec"], *(spec.get("workerGroupSpecs") or [])):
            ports = [port.get("name") for port in group["template"]["spec"]["containers"][0].get("ports") or []]
            if "serve" not in ports:
                yield title(service), f"every Ray container of a service must have a port `serve`, got {ports}; declare it"
        if ((spec["headGroupSpec"].get("headService") or {}).get("metadata") or {}).get("name"):
            yield title(service), "headService must have no name of its own, got one; remove it"


def queue_exists(bundle: Bundle) -> Wrong:
    """A job in a queue that is not there waits for ever; and Kueue decides by what stands on the job itself."""
    names = {"LocalQueue": set[str](), "ClusterQueue": set[str](), "ResourceFlavor": set[str]()}
    for document in bundle.everything:
        if document.get("kind") in names:
            names[document["kind"]].add(document["metadata"]["name"])
    for document in bundle.documents:
        queue = (document["metadata"].get("labels") or {}).get(QUEUE)
        if queue and queue not in names["LocalQueue"]:
            yield (
                title(document),
                f"label {QUEUE} must name a LocalQueue, got {queue!r}; known: {', '.join(sorted(names['LocalQueue'])) or 'none'}",
            )
    for local in bundle.of("LocalQueue"):
        if local["spec"]["clusterQueue"] not in names["ClusterQueue"]:
            yield title(local), f"clusterQueue must be one of ours, got {local['spec']['clusterQueue']!r}; correct it"
    for cluster in bundle.of("ClusterQueue"):
        flavors = [flavor["name"] for group in cluster["spec"]["resourceGroups"] for flavor in group["flavors"]]
        for name in sorted(set(flavors) - names["ResourceFlavor"]):
            yield title(cluster), f"flavors must be ResourceFlavors of ours, got {name!r}; correct it"


RULES = table(
    job_is_cleaned_up, job_deletion_rules, job_deadlines, job_entrypoint, job_runtime_environment, job_submission, job_retries,
    service_configuration, queue_exists,
)  # fmt: skip
