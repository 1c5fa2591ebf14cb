"""What keeps a head where it is, what may move, and what runs by the clock."""

import re

from k8s.check.bundle import Bundle
from k8s.check.pods import namespace_of, title
from k8s.check.rule import Wrong, table
from k8s.check.selectors import selects

__all__ = ["RULES"]

_STAY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
_FIELD = re.compile(r"(\*|\d+(-\d+)?(,\d+(-\d+)?)*)(/\d+)?\Z")


def budgets_find_pods(bundle: Bundle) -> Wrong:
    """A budget for pods that are not there protects nothing."""
    for budget in bundle.of("PodDisruptionBudget"):
        space, selector = namespace_of(budget), budget["spec"].get("selector") or {}
        if not any(pod.namespace == space and selects(selector, pod.labels) for pod in bundle.network.pods.values()):
            yield title(budget), f"a PodDisruptionBudget must find pods, got none for {selector}; correct the selector"


def budgets_of_ray_count(bundle: Bundle) -> Wrong:
    """Percentages and maxUnavailable ask the owner how many pods it wants, which a RayCluster cannot say: eviction is then refused for ever."""
    for budget in bundle.of("PodDisruptionBudget"):
        selector = budget["spec"].get("selector") or {}
        found = [pod for pod in bundle.network.pods.values() if pod.role in ("head", "worker") and selects(selector, pod.labels)]
        if found and not isinstance(budget["spec"].get("minAvailable"), int):
            yield title(budget), f"a budget of Ray's pods must have an integer minAvailable, got {budget['spec']}; write one"


def heads_stay(bundle: Bundle) -> Wrong:
    """A job is lost with its head: neither drain nor consolidation may take it."""
    for pod in (pod for pod in bundle.pods if pod.role == "head"):
        missing = {key: value for key, value in _STAY.items() if pod.annotations.get(key) != value}
        if missing:
            yield (
                f"{pod.owner} {pod.name}",
                f"a head must be annotated {missing}, got {dict(pod.annotations)}; add them to its template",
            )
        budgets = [budget for budget in bundle.everything if budget.get("kind") == "PodDisruptionBudget"]
        if not any(
            namespace_of(budget) == pod.namespace and selects(budget["spec"].get("selector") or {}, pod.labels)
            for budget in budgets
        ):
            yield f"{pod.owner} {pod.name}", "a head must have a PodDisruptionBudget, got none; write one"


def nobody_scales_ray_pods(bundle: Bundle) -> Wrong:
    """Ray's pods are scaled by Ray's autoscaler; another one beside it undoes what it does."""
    for scaler in bundle.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        if str(target.get("apiVersion")).startswith("ray.io/") or not bundle.find(
            target["kind"], target["name"], namespace_of(scaler)
        ):
            yield (
                title(scaler),
                f"an autoscaler must target a workload of Kubernetes that is there, got {target}; use Ray's own for Ray",
            )


def schedules_do_not_overlap(bundle: Bundle) -> Wrong:
    """Requests are served in order, one at a time; two runs at once would make two stacks. A time is in UTC and says so."""
    for job in bundle.of("CronJob"):
        spec = job["spec"]
        if spec.get("concurrencyPolicy") != "Forbid":
            yield title(job), f"concurrencyPolicy must be Forbid, got {spec.get('concurrencyPolicy')!r}; set it"
        fields = str(spec.get("schedule")).split()
        if len(fields) != 5 or not all(_FIELD.match(field) for field in fields) or not spec.get("timeZone"):
            yield (
                title(job),
                f"a schedule must be five fields with a timeZone beside it, got {spec.get('schedule')!r}, {spec.get('timeZone')!r}; write both",
            )


def jobs_end(bundle: Bundle) -> Wrong:
    """A Job that hangs holds what it has; one that retries for ever hides that it fails."""
    jobs = [(title(job), job["spec"]) for job in bundle.of("Job")]
    jobs += [(title(job), job["spec"]["jobTemplate"]["spec"]) for job in bundle.of("CronJob")]
    for where, spec in jobs:
        if not spec.get("activeDeadlineSeconds") or "backoffLimit" not in spec:
            yield (
                where,
                f"a Job must have activeDeadlineSeconds and backoffLimit, got {spec.get('activeDeadlineSeconds')}, {spec.get('backoffLimit')}; set both",
            )


RULES = table(budgets_find_pods, budgets_of_ray_count, heads_stay, nobody_scales_ray_pods, schedules_do_not_overlap, jobs_end)
