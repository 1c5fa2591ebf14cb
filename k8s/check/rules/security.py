"""Pod Security "restricted" for every container that will run, those of KubeRay among them, and our own policies beyond it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from k8s.check.bundle import Bundle
from k8s.check.pods import namespace_of, title
from k8s.check.rule import Wrong, table

__all__ = ["RULES"]

_VOLUMES = frozenset({"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"})
_SECRET_NAME = re.compile(r"(PASSWORD|TOKEN|SECRET|API_KEY|ACCESS_KEY|CREDENTIAL)", re.IGNORECASE)
_CREDENTIALS = re.compile(r"://[^/\s:@]+:[^/\s@$]+@")
_NEVER_OUT = frozenset({8265, 10001, 6379})
_LABEL = "pod-security.kubernetes.io/"


def _contexts(bundle: Bundle) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Place, the container's security context, and that laid over its pod's."""
    for where, pod, container in bundle.containers:
        own = container.get("securityContext") or {}
        yield where, own, {**(pod.spec.get("securityContext") or {}), **own}


def namespace_is_restricted(bundle: Bundle) -> Wrong:
    """The namespace holds every pod to the standard, whoever makes it."""
    for namespace in bundle.of("Namespace"):
        labels = namespace["metadata"].get("labels") or {}
        wanted = f"v{bundle.version('kubernetes')}"
        if labels.get(f"{_LABEL}enforce") != "restricted" or labels.get(f"{_LABEL}enforce-version") != wanted:
            found = {key.removeprefix(_LABEL): value for key, value in labels.items() if key.startswith(_LABEL)}
            yield title(namespace), f"a namespace must enforce `restricted` of {wanted}, got {found}; set the labels"


def no_host_access(bundle: Bundle) -> Wrong:
    """Nothing of the node is shared: no namespaces, no ports, no privileges."""
    for pod in bundle.pods:
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(field):
                yield f"{pod.owner} {pod.name}", f"{field} must be off, got true; remove it"
    for where, _, container in bundle.containers:
        for port in container.get("ports") or []:
            if port.get("hostPort"):
                yield where, f"hostPort must not be used, got {port['hostPort']}; use a Service"
        if (container.get("securityContext") or {}).get("privileged"):
            yield where, "privileged must be off, got true; remove it"


def volume_kinds(bundle: Bundle) -> Wrong:
    """Volumes of other kinds reach into the node, or past the storage classes."""
    for pod in bundle.pods:
        for volume in pod.spec.get("volumes") or []:
            for kind in sorted(volume.keys() - {"name"} - _VOLUMES):
                yield (
                    f"{pod.owner} {pod.name} volumes[{volume['name']}]",
                    f"a volume must be of a restricted kind, got {kind}; use a claim",
                )


def runs_as_nobody_special(bundle: Bundle) -> Wrong:
    """A numeric user other than root: the kubelet cannot tell from a name that it is not root."""
    for where, _, context in _contexts(bundle):
        user, group = context.get("runAsUser"), context.get("runAsGroup")
        if context.get("runAsNonRoot") is not True or not user or not group:
            yield (
                where,
                f"runAsNonRoot with a numeric user and group must be set, got user {user!r}, group {group!r}; set them for the pod",
            )


def seccomp_profile(bundle: Bundle) -> Wrong:
    """System calls that no container needs are closed."""
    for where, _, context in _contexts(bundle):
        kind = (context.get("seccompProfile") or {}).get("type")
        if kind not in ("RuntimeDefault", "Localhost"):
            yield where, f"seccompProfile must be RuntimeDefault, got {kind!r}; set it for the pod"


def no_privilege_escalation(bundle: Bundle) -> Wrong:
    """A pod's own context cannot say this; each container has to, and KubeRay's get it from submitterPodTemplate and autoscalerOptions."""
    for where, own, _ in _contexts(bundle):
        if own.get("allowPrivilegeEscalation") is not False:
            yield (
                where,
                f"allowPrivilegeEscalation must be false, got {own.get('allowPrivilegeEscalation')!r}; set it for the container",
            )


def no_capabilities(bundle: Bundle) -> Wrong:
    """All capabilities are dropped and none is added, not even the one that the standard would allow."""
    for where, own, _ in _contexts(bundle):
        capabilities = own.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []) or capabilities.get("add"):
            yield where, f"capabilities must be {{drop: [ALL]}}, got {dict(capabilities)}; set it for the container"


def read_only_root(bundle: Bundle) -> Wrong:
    """Code cannot be changed by what it runs; what is written goes to a volume that is named."""
    for where, own, _ in _contexts(bundle):
        if own.get("readOnlyRootFilesystem") is not True:
            yield where, f"readOnlyRootFilesystem must be true, got {own.get('readOnlyRootFilesystem')!r}; set it, and mount /tmp"


def api_token(bundle: Bundle) -> Wrong:
    """The token of the Kubernetes API is for the one pod that asks it something: a head with an autoscaler, which cannot do without."""
    for pod in bundle.pods:
        needs = any(container["name"] == "autoscaler" for container in pod.spec["containers"])
        if pod.spec.get("automountServiceAccountToken", True) is not needs:
            found = pod.spec.get("automountServiceAccountToken")
            yield (
                f"{pod.owner} {pod.name}",
                f"automountServiceAccountToken must be {str(needs).lower()} here, got {found!r}; set it",
            )


def secrets_by_reference(bundle: Bundle) -> Wrong:
    """What is secret comes from a Secret that is made elsewhere: never from a manifest, a command line or a ConfigMap."""
    for secret in bundle.of("Secret"):
        yield title(secret), "a Secret must not be among the manifests, got one; name it in secrets.example.yaml"
    for where, _, container in bundle.containers:
        for variable in container.get("env") or []:
            if _SECRET_NAME.search(variable["name"]) and variable.get("value"):
                yield f"{where} env[{variable['name']}]", "a secret must come by secretKeyRef, got a value; move it into a Secret"
        text = " ".join(map(str, [*(container.get("command") or []), *(container.get("args") or [])]))
        if _CREDENTIALS.search(text):
            yield where, "a command must hold no password, got an address with one; pass it by the environment"
    for config in bundle.of("ConfigMap"):
        for key, value in (config.get("data") or {}).items():
            if _CREDENTIALS.search(value) or ("\n" not in value and _SECRET_NAME.search(key) and value):
                yield f"{title(config)} {key}", "a ConfigMap must hold no secret, got what looks like one; move it into a Secret"


def nothing_is_exposed(bundle: Bundle) -> Wrong:
    """Dashboard, Ray Client and GCS are never reachable from outside the cluster, and nothing else is by our doing."""
    for service in bundle.of("Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP" or service["spec"].get("externalIPs"):
            yield (
                title(service),
                f"a Service must be of type ClusterIP, got {service['spec'].get('type')!r}; use an Ingress of your own in an overlay",
            )
    for document in bundle.of("Ingress", "HTTPRoute", "Gateway"):
        yield title(document), f"nothing may be published from here, got a {document['kind']}; write it in an overlay of your own"
    for cluster in bundle.clusters:
        head = cluster.spec["headGroupSpec"]
        kinds = [head.get("serviceType"), ((head.get("headService") or {}).get("spec") or {}).get("type")]
        if head.get("enableIngress") or any(kind not in (None, "ClusterIP") for kind in kinds):
            yield (
                cluster.owner,
                f"the head's ports {sorted(_NEVER_OUT)} must stay inside, got serviceType or enableIngress; remove them",
            )


def no_ray_client(bundle: Bundle) -> Wrong:
    """Ray Client wants the very same versions at both ends and has no submission to go back to; jobs are submitted."""
    for where, _, container in bundle.containers:
        if any(port["containerPort"] == 10001 for port in container.get("ports") or []):
            yield where, "Ray Client's port must not be declared, got 10001; use `ray job submit`"


def narrow_roles(bundle: Bundle) -> Wrong:
    """People get what they need in this namespace: no wildcards, no cluster roles, secrets by name."""
    for role in bundle.of("ClusterRole", "ClusterRoleBinding"):
        yield title(role), f"rights must stay in the namespace, got a {role['kind']}; write a Role"
    for role in bundle.of("Role"):
        for index, rule in enumerate(role.get("rules") or []):
            words = [*rule.get("apiGroups", []), *rule.get("resources", []), *rule.get("verbs", [])]
            if "*" in words:
                yield f"{title(role)} rules[{index}]", f"rights must be named, got a wildcard in {words}; name them"
            if "secrets" in rule.get("resources", []) and not rule.get("resourceNames"):
                yield f"{title(role)} rules[{index}]", "secrets must be named, got all of them; add resourceNames"


def bindings_lead_somewhere(bundle: Bundle) -> Wrong:
    """A binding to a role or an account that is not there gives nobody anything."""
    for binding in bundle.of("RoleBinding"):
        space, role = namespace_of(binding), binding["roleRef"]
        if role["kind"] == "Role" and not bundle.find("Role", role["name"], space):
            yield title(binding), f"roleRef must name a Role, got {role['name']!r}; correct it"
        for subject in binding.get("subjects") or []:
            if subject["kind"] == "ServiceAccount" and not bundle.find(
                "ServiceAccount", subject["name"], subject.get("namespace", space)
            ):
                yield title(binding), f"a subject must be there, got ServiceAccount {subject['name']!r}; correct it"


RULES = table(
    namespace_is_restricted, no_host_access, volume_kinds, runs_as_nobody_special, seccomp_profile, no_privilege_escalation, no_capabilities,
    read_only_root, api_token, secrets_by_reference, nothing_is_exposed, no_ray_client, narrow_roles, bindings_lead_somewhere,
)  # fmt: skip
