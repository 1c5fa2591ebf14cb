"""A mistake for every rule: where it is made in the real manifests, and how.

A path is words: keys, positions in lists, `@name` for the element of that name, and `-` for one more element at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from k8s.check.pods import title
from k8s.check.strict_yaml import Document

__all__ = ["SEEDS", "Draft", "Seed"]

LOCAL, SWEEP, CHAMPION = "overlays/local-cpu", "overlays/local-cpu/sweep", "overlays/local-cpu/champion"
GPU, GPU_SWEEP, SCALED, WATCHED = "overlays/gpu", "overlays/gpu/sweep", "workloads/champion", "components/monitoring"
GONE = object()
"""Stands for a value that is taken away."""
HEAD, WORKER = "spec headGroupSpec", "spec workerGroupSpecs 0"
MLFLOW = "Deployment/mlflow spec template spec"
CRON = "spec jobTemplate spec template spec"


@dataclass
class Draft:
    """Documents that mistakes are made in."""

    documents: list[Document]
    versions: dict[str, str]
    changed: set[str] = field(default_factory=set)

    def find(self, name: str) -> Document:
        """The object of "Kind/name", or of a name that goes on after a hyphen."""
        found = [document for document in self.documents if title(document) == name or title(document).startswith(f"{name}-")]
        exact = [document for document in found if title(document) == name]
        return (exact or found)[0]

    def put(self, path: str, value: Any) -> None:
        """Set, add or take away what is at "Kind/name key key ..."."""
        name, *words = path.split()
        *parents, last = words
        place: Any = self.find(name)
        for word in parents:
            place = place[self._key(place, word)] if isinstance(place, list) or word in place else place.setdefault(word, {})
        key = self._key(place, last)
        if value is GONE:
            del place[key]
        elif key == "-":
            place.append(value)
        else:
            place[key] = value

    @staticmethod
    def _key(place: Any, word: str) -> Any:
        if not isinstance(place, list) or word == "-":
            return word
        return [part.get("name") for part in place].index(word[1:]) if word.startswith("@") else int(word)

    def replace(self, path: str, old: str, new: str) -> None:
        """Change a part of a text."""
        name, *words = path.split()
        place: Any = self.find(name)
        for word in words[:-1]:
            place = place[self._key(place, word)]
        assert old in place[words[-1]]
        place[words[-1]] = place[words[-1]].replace(old, new)

    def add(self, text: str) -> None:
        """One more document."""
        self.documents.append(yaml.safe_load(text))


@dataclass(frozen=True)
class Seed:
    """A mistake that one rule, and no other, speaks of."""

    rule: str
    bundle: str
    edit: Callable[[Draft], None]
    without_crds: bool = False


def _put(rule: str, bundle: str, *edits: tuple[str, Any], **options: bool) -> Seed:
    def edit(draft: Draft) -> None:
        for path, value in edits:
            draft.put(path, value)

    return Seed(rule, bundle, edit, **options)


def _policy(name: str, spec: str) -> str:
    return f"{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: unlearning}}, spec: {spec}}}"


def _to(block: str) -> str:
    return f"{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {block}}}]}}]}}"


_NODES = "{podSelector: {matchLabels: {ray.io/is-ray-node: 'yes'}}}"
_OPEN = f"{{podSelector: {_NODES[14:-1]}, policyTypes: [Ingress, Egress], ingress: [{{from: [{_NODES}]}}], egress: [{{to: [{_NODES}]}}]}}"
_SCALER = (
    "{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: a, namespace: unlearning}, "
    "spec: {maxReplicas: 2, scaleTargetRef: {apiVersion: ray.io/v1, kind: RayCluster, name: unlearn}}}"
)
_ALERT = {
    "alert": "x",
    "expr": "rate(grun_nothing_total[5m]) > 0",
    "labels": {"severity": "warning"},
    "annotations": {"summary": "x"},
}
_LATE = [
    {"policy": policy, "condition": {"jobStatus": "FAILED", "ttlSeconds": seconds}}
    for policy, seconds in (("DeleteCluster", 1), ("DeleteWorkers", 2))
]


def _copy(draft: Draft) -> None:
    draft.documents.append(draft.find("Service/mlflow"))


def _stale(draft: Draft) -> None:
    draft.versions["mlflow"] = "3.0.0"


def _keyless(draft: Draft) -> None:
    container = draft.find("RayService/champion")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"][
        "containers"
    ][0]
    container["envFrom"] = [source for source in container["envFrom"] if source.get("secretRef", {}).get("name") != "champion"]


SCHEMAS = [
    _put("core-schema", LOCAL, ("Service/mlflow spec sessionAfinity", "None")),
    _put("core-schema", LOCAL, (f"{MLFLOW} containers 0 resources limits memory", ["1Gi"])),
    _put("ray-schema", LOCAL, ("RayCluster/unlearn spec headGroupSpec replicas", 1)),
    _put("ray-schema", SWEEP, ("RayJob/sweep spec managedBy", "nobody")),
    _put(
        "ray-schema",
        LOCAL,
        (
            f"RayCluster/unlearn {HEAD} template spec containers 0 env",
            [{"name": "TZ", "value": "UTC"}, {"name": "TZ", "value": "CET"}],
        ),
    ),
    _put("ray-schema", LOCAL, ("RayCluster/unlearn spec rayVersions", "2.60.0"), without_crds=True),
    _put("ray-schema", SWEEP, ("RayJob/sweep spec rayClusterSpec workerGroupSpecs 0 minReplica", 1), without_crds=True),
    _put("ray-schema", CHAMPION, ("RayService/champion spec serveConfig", "x"), without_crds=True),
    _put("ray-schema", LOCAL, ("RayCluster/unlearn spec enableInTreeAutoscaling", "yes"), without_crds=True),
    _put("other-schema", WATCHED, ("PodMonitor/ray spec podMetricsEndpoints 0 intervall", "15s")),
    _put("other-schema", LOCAL, ("PodDisruptionBudget/mlflow apiVersion", "policy/v1beta1")),
    Seed("core-schema", LOCAL, lambda draft: draft.add(_policy("lost", _to("10.0.0.5")))),
    Seed("address-blocks", LOCAL, lambda draft: draft.add(_policy("lost", _to("{cidr: 10.0.0.5}")))),
    Seed("address-blocks", LOCAL, lambda draft: draft.add(_policy("lost", _to("{cidr: 10.0.0.5/8}")))),
    Seed("address-blocks", LOCAL, lambda draft: draft.add(_policy("lost", _to("{cidr: 10.0.0.0/8, except: [192.168.0.0/16]}")))),
    _put("pod-schema", LOCAL, (f"RayCluster/unlearn {HEAD} template spec containers 0 volumeMount", []), without_crds=True),
]
RAY = [
    _put("ray-names", LOCAL, (f"RayCluster/unlearn {WORKER} groupName", "Cpu")),
    _put("ray-container-first", LOCAL, (f"RayCluster/unlearn {HEAD} template spec containers 0 name", "main")),
    _put("ray-replicas", LOCAL, (f"RayCluster/unlearn {WORKER} maxReplicas", 1)),
    _put("ray-start-params", LOCAL, (f"RayCluster/unlearn {HEAD} rayStartParams labels", "zone=a")),
    _put("ray-start-params", LOCAL, (f"RayCluster/unlearn {HEAD} resources", {"CPU": "0"})),
    _put("ray-start-flags-exist", LOCAL, (f"RayCluster/unlearn {HEAD} rayStartParams object-store-memery", "200000000")),
    _put("ray-start-flags-exist", GPU_SWEEP, ("RayJob/sweep spec rayClusterSpec workerGroupSpecs 0 rayStartParams num_cpus", "1")),
    _put("ray-authentication", LOCAL, ("RayCluster/unlearn spec authOptions", GONE)),
    _put("ray-alpha-fields", LOCAL, ("RayCluster/unlearn spec gcsFaultToleranceOptions", {"backend": "rocksdb"})),
    _put("ray-autoscaler", SCALED, ("RayService/champion spec rayClusterConfig autoscalerOptions version", "v1")),
    _put("ray-idle-timeout", LOCAL, (f"RayCluster/unlearn {WORKER} idleTimeoutSeconds", 60)),
    _put("ray-fault-tolerance", LOCAL, (f"RayCluster/unlearn {HEAD} rayStartParams redis-password", "x")),
    _put("job-is-cleaned-up", SWEEP, ("RayJob/sweep spec shutdownAfterJobFinishes", False)),
    _put(
        "job-deletion-rules", SWEEP, ("RayJob/sweep spec shutdownAfterJobFinishes", GONE), ("RayJob/sweep spec ttlSecondsAfterFinished", GONE),
        ("RayJob/sweep spec deletionStrategy", {"deletionRules": _LATE}),
    ),
    _put("job-deadlines", SWEEP, ("RayJob/sweep spec activeDeadlineSeconds", GONE)),
    _put(
        "job-entrypoint", SWEEP, ("RayJob/sweep spec entrypoint", "python /app/pipelines/sweep.py --recipe /config/recipe.yaml --name $HOME"),
        ("RayJob/sweep spec submitterPodTemplate spec containers 0 args -", "--name"),
        ("RayJob/sweep spec submitterPodTemplate spec containers 0 args -", "$HOME"),
    ),
    _put("job-runtime-environment", SWEEP, ("RayJob/sweep spec runtimeEnvYAML", "pip: [torch]")),
    _put("job-submission", SWEEP, ("RayJob/sweep spec clusterSelector", {"ray.io/cluster": "unlearn"})),
    _put("job-retries", SWEEP, ("RayJob/sweep spec backoffLimit", 2)),
    *(
        _put("service-configuration", CHAMPION, ("RayService/champion spec serveConfigV2", text))
        for text in ("applications: []", "applications: [x]", "applications: {a: {}}", "[x]", "{")
    ),
    _put("queue-exists", GPU_SWEEP, ("RayJob/sweep metadata labels kueue.x-k8s.io/queue-name", "nowhere")),
]  # fmt: skip
SECURITY = [
    _put(
        "namespace-is-restricted", LOCAL, ("Namespace/unlearning metadata labels pod-security.kubernetes.io/enforce", "baseline")
    ),
    _put("no-host-access", LOCAL, (f"{MLFLOW} hostNetwork", True)),
    _put("volume-kinds", LOCAL, (f"{MLFLOW} volumes -", {"name": "host", "hostPath": {"path": "/"}})),
    _put("runs-as-nobody-special", LOCAL, (f"{MLFLOW} securityContext runAsNonRoot", False)),
    _put("runs-as-nobody-special", LOCAL, (f"{MLFLOW} containers 0 securityContext runAsUser", 0)),
    _put("seccomp-profile", LOCAL, (f"{MLFLOW} securityContext seccompProfile", GONE)),
    _put(
        "no-privilege-escalation",
        SCALED,
        ("RayService/champion spec rayClusterConfig autoscalerOptions securityContext allowPrivilegeEscalation", GONE),
    ),
    _put("no-capabilities", LOCAL, (f"{MLFLOW} containers 0 securityContext capabilities add", ["IPC_LOCK"])),
    _put("read-only-root", LOCAL, (f"{MLFLOW} containers 0 securityContext readOnlyRootFilesystem", False)),
    _put("api-token", LOCAL, (f"{MLFLOW} automountServiceAccountToken", True)),
    _put(
        "api-token",
        SCALED,
        ("RayService/champion spec rayClusterConfig headGroupSpec template spec automountServiceAccountToken", False),
    ),
    _put(
        "secrets-by-reference", LOCAL, (f"{MLFLOW} containers 0 env", [{"name": "MLFLOW_TRACKING_PASSWORD", "value": "sesame"}])
    ),
    _put(
        "secrets-by-reference",
        LOCAL,
        ("ConfigMap/mlflow data MLFLOW_BACKEND_STORE_URI", "postgresql://mlflow:sesame@db.example.com:5432/mlflow"),
    ),
    _put("nothing-is-exposed", LOCAL, ("Service/mlflow spec type", "LoadBalancer")),
    _put("nothing-is-exposed", LOCAL, (f"RayCluster/unlearn {HEAD} serviceType", "NodePort")),
    _put(
        "no-ray-client",
        LOCAL,
        (f"RayCluster/unlearn {HEAD} template spec containers 0 ports -", {"name": "client", "containerPort": 10001}),
    ),
    _put("narrow-roles", LOCAL, ("Role/submit rules 0 verbs", ["*"])),
    _put("bindings-lead-somewhere", LOCAL, ("RoleBinding/submit roleRef name", "submitters")),
]
RESOURCES = [
    _put("requests-and-limits", LOCAL, (f"{MLFLOW} containers 0 resources limits cpu", GONE)),
    _put("memory-is-reserved", LOCAL, (f"{MLFLOW} containers 0 resources requests memory", "1Mi")),
    _put("object-store-fits", LOCAL, (f"RayCluster/unlearn {HEAD} rayStartParams object-store-memory", "99999999999")),
    _put("object-store-fits", LOCAL, (f"RayCluster/unlearn {HEAD} rayStartParams object-store-memory", GONE)),
    _put("shared-memory-is-memory", LOCAL, (f"RayCluster/unlearn {HEAD} template spec volumes @shm emptyDir sizeLimit", "4Gi")),
    _put(
        "gpus-are-whole", GPU, (f"RayCluster/unlearn {WORKER} template spec containers 0 resources requests nvidia.com/gpu", "2")
    ),
    _put("gpus-and-tolerations", GPU, (f"RayCluster/unlearn {WORKER} template spec tolerations", GONE)),
    _put("head-does-no-work", LOCAL, (f"RayCluster/unlearn {HEAD} rayStartParams num-cpus", "1")),
    _put("scratch-is-limited", LOCAL, (f"{MLFLOW} volumes @tmp emptyDir", {})),
    _put(
        "spilling-is-limited",
        LOCAL,
        (f"RayCluster/unlearn {WORKER} template spec containers 0 resources limits ephemeral-storage", GONE),
    ),
    _put("image-is-pinned", LOCAL, ("StatefulSet/postgres spec template spec containers 0 image", "postgres")),
    _put("image-is-known", LOCAL, ("StatefulSet/postgres spec template spec containers 0 image", "postgres:16.1")),
    _put("image-is-one", LOCAL, (f"{MLFLOW} containers 0 image", "localhost/grun-pipelines:0.1.0-cuda")),
    _put("ray-version", LOCAL, ("RayCluster/unlearn spec rayVersion", "2.59.0")),
    Seed("versions-agree", LOCAL, _stale),
]
REFERENCES = [
    _put(
        "config-maps-exist",
        LOCAL,
        (f"{MLFLOW} containers 0 env", [{"name": "LOGNAME", "valueFrom": {"configMapKeyRef": {"name": "recipe", "key": "x"}}}]),
    ),
    _put(
        "config-maps-exist",
        LOCAL,
        (f"RayCluster/unlearn {HEAD} template spec containers 0 envFrom -", {"configMapRef": {"name": "environment"}}),
    ),
    _put(
        "secrets-are-announced", LOCAL, (f"{MLFLOW} containers 0 envFrom -", {"secretRef": {"name": "nobody", "optional": True}})
    ),
    _put("claims-exist", LOCAL, (f"CronJob/prune-caches {CRON} volumes @results persistentVolumeClaim claimName", "result")),
    _put("accounts-exist", LOCAL, (f"{MLFLOW} serviceAccountName", "mlfow")),
    _put("mounts-have-volumes", LOCAL, (f"{MLFLOW} containers 0 volumeMounts -", {"name": "nothing", "mountPath": "/nothing"})),
    _put(
        "names-are-unique",
        LOCAL,
        (f"{MLFLOW} containers 0 env", [{"name": "TZ", "value": "UTC"}, {"name": "TZ", "value": "CET"}]),
    ),
    Seed("objects-are-unique", LOCAL, _copy),
    _put(
        "weights-are-read-only",
        LOCAL,
        (f"RayCluster/unlearn {HEAD} template spec containers 0 volumeMounts @models readOnly", False),
    ),
    _put("services-have-pods", LOCAL, ("Service/postgres spec selector", {"app": "nobody"})),
    _put("services-have-pods", LOCAL, ("Service/postgres spec ports 0 targetPort", "pg")),
    _put(
        "selectors-match-templates", LOCAL, ("Deployment/mlflow spec selector matchLabels app.kubernetes.io/component", "mlfow")
    ),
    _put("probes-have-ports", LOCAL, (f"{MLFLOW} containers 0 readinessProbe httpGet port", 5001)),
    _put(
        "budgets-find-pods", LOCAL, ("PodDisruptionBudget/mlflow spec selector matchLabels app.kubernetes.io/component", "mlfow")
    ),
    _put("budgets-of-ray-count", LOCAL, ("PodDisruptionBudget/ray-head spec minAvailable", "50%")),
    _put("heads-stay", LOCAL, (f"RayCluster/unlearn {HEAD} template metadata annotations", GONE)),
    Seed("nobody-scales-ray-pods", LOCAL, lambda draft: draft.add(_SCALER)),
    _put("schedules-do-not-overlap", LOCAL, ("CronJob/next-request spec concurrencyPolicy", "Allow")),
    _put("schedules-do-not-overlap", LOCAL, ("CronJob/next-request spec schedule", "hourly")),
    _put("jobs-end", LOCAL, ("Job/mlflow-migrate spec activeDeadlineSeconds", GONE)),
]
COMMANDS = [
    _put("scripts-exist", LOCAL, ("Job/mlflow-users spec template spec containers 0 command 1", "/scripts/user.py")),
    _put("scripts-exist", LOCAL, (f"CronJob/next-request {CRON} containers 0 args 1", "/app/pipelines/requests.py")),
    _put("options-exist", LOCAL, (f"CronJob/prune-caches {CRON} containers 0 command -", "--unused-day")),
    _put("options-exist", LOCAL, (f"CronJob/next-request {CRON} containers 0 args 2", "nxt")),
    _put("recipes-exist", LOCAL, (f"CronJob/prune-caches {CRON} containers 0 command 3", "/config/recipes.yaml")),
    Seed(
        "recipes-exist", LOCAL, lambda draft: draft.replace("ConfigMap/recipe data recipe.yaml", "output:", "outptu: x\noutput:")
    ),
    Seed(
        "results-are-kept",
        LOCAL,
        lambda draft: draft.replace("ConfigMap/recipe data recipe.yaml", "output: /results", "output: /tmp/results"),
    ),
    Seed(
        "weights-are-mounted",
        GPU,
        lambda draft: draft.replace("ConfigMap/recipe data recipe.yaml", "path: /models/", "path: /model/"),
    ),
    _put("scripts-of-config-maps-parse", LOCAL, ("ConfigMap/mlflow-scripts data users.py", "def main(:")),
    Seed(
        "serve-imports-exist",
        CHAMPION,
        lambda draft: draft.replace("RayService/champion spec serveConfigV2", "app:application", "app:aplication"),
    ),
    Seed(
        "serve-arguments-are-taken",
        CHAMPION,
        lambda draft: draft.replace("RayService/champion spec serveConfigV2", "version: 1", "versoin: 1"),
    ),
    Seed(
        "serve-arguments-are-taken",
        CHAMPION,
        lambda draft: draft.replace("RayService/champion spec serveConfigV2", "version: 1", "version: first"),
    ),
    _put(
        "recipe-is-said-once",
        SWEEP,
        ("RayJob/sweep spec entrypoint", "python /app/pipelines/sweep.py --recipe /config/recipe.yaml --seed 1"),
    ),
    _put("variables-are-read", LOCAL, ("ConfigMap/mlflow data MLFLOW_SERVER_ALOWED_HOSTS", "x")),
    _put(
        "recipe-variables-are-fields",
        LOCAL,
        (f"RayCluster/unlearn {HEAD} template spec containers 0 env", [{"name": "GRUN_TRAIN__EPOCH", "value": "5"}]),
    ),
    _put(
        "recipe-variables-are-fields",
        LOCAL,
        (f"RayCluster/unlearn {HEAD} template spec containers 0 env", [{"name": "GRUN_SEED", "value": "-1"}]),
    ),
    _put("expansions-have-values", LOCAL, (f"CronJob/next-request {CRON} containers 0 command 3", "$(POD_NAM)")),
    _put("mlflow-knows-its-names", LOCAL, ("ConfigMap/mlflow data MLFLOW_SERVER_ALLOWED_HOSTS", "mlflow,localhost:5000")),
    Seed("served-with-a-key", CHAMPION, _keyless),
    _put("stays-offline", LOCAL, ("ConfigMap/environment data HF_HUB_OFFLINE", "0")),
]
NETWORK = [
    Seed("denied-by-default", LOCAL, lambda draft: draft.documents.remove(draft.find("NetworkPolicy/default-deny"))),
    Seed(
        "policies-find-pods",
        LOCAL,
        lambda draft: draft.add(_policy("lost", "{podSelector: {matchLabels: {app: mlfow}}, policyTypes: [Ingress]}")),
    ),
    _put("policies-open-real-ports", LOCAL, ("NetworkPolicy/ray-dashboard spec ingress 0 ports -", {"port": 8266})),
    _put(
        "addresses-lead-to-services", LOCAL, ("Job/mlflow-users spec template spec containers 0 env 0 value", "http://mlfow:5000")
    ),
    _put(
        "addresses-lead-to-services",
        LOCAL,
        ("Job/mlflow-users spec template spec containers 0 env 0 value", "http://mlflow:5001"),
    ),
    _put("addresses-are-open", LOCAL, ("NetworkPolicy/mlflow-users spec egress 0 ports 0 port", 5001)),
    _put("addresses-are-open", LOCAL, ("NetworkPolicy/submitter spec egress 0 ports 0 protocol", "UDP")),
    _put("names-can-be-resolved", LOCAL, ("NetworkPolicy/dns spec egress 0 ports 0", GONE)),
    _put("ray-nodes-reach-each-other", LOCAL, ("NetworkPolicy/ray spec ingress 0 ports", [{"port": 6379}])),
    Seed("clusters-are-apart", SWEEP, lambda draft: draft.add(_policy("open", _OPEN))),
    _put("strangers-stay-out", LOCAL, ("NetworkPolicy/postgres spec ingress 0 from", GONE)),
    _put("nothing-calls-out", LOCAL, ("NetworkPolicy/to-postgres spec egress -", {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})),
    _put("operator-reaches-heads", LOCAL, ("NetworkPolicy/ray-dashboard spec ingress 0 from 1", GONE)),
    _put("monitors-find-ports", WATCHED, ("PodMonitor/ray spec podMetricsEndpoints 0 port", "metric")),
    _put("monitors-get-through", WATCHED, ("NetworkPolicy/metrics spec ingress 0 ports 0", GONE)),
    _put("series-exist", WATCHED, ("PrometheusRule/unlearning spec groups 0 rules -", _ALERT)),
    _put("dashboards-are-json", WATCHED, ("ConfigMap/grafana-unlearning data unlearning.json", "{")),
    _put("alerts-say-what-to-do", WATCHED, ("PrometheusRule/unlearning spec groups 0 rules 0 annotations", GONE)),
]
SEEDS = [*SCHEMAS, *RAY, *SECURITY, *RESOURCES, *REFERENCES, *COMMANDS, *NETWORK]
