"""Whatever is named is there: configuration, secrets, claims, accounts, volumes, ports."""

from collections.abc import Iterator, Mapping
from typing import Any

from k8s.check.bundle import Bundle
from k8s.check.pod import Container, container_ports
from k8s.check.pods import title
from k8s.check.rule import Wrong, table
from k8s.check.selectors import selects
from k8s.check.services import backends, target_of

__all__ = ["RULES", "references"]

Reference = tuple[str, str, str, str | None, bool]
"""Place, namespace, name, key (None: the whole object), and whether it may be missing."""


def references(bundle: Bundle, kind: str) -> Iterator[Reference]:
    """Every mention of a ConfigMap ("configMap") or Secret ("secret") by an effective pod."""
    for where, pod, container in bundle.containers:
        for source in container.get("envFrom") or []:
            if f"{kind}Ref" in source:
                found = source[f"{kind}Ref"]
                yield f"{where} envFrom", pod.namespace, found["name"], None, found.get("optional", False)
        for variable in container.get("env") or []:
            found = (variable.get("valueFrom") or {}).get(f"{kind}KeyRef")
            if found:
                yield f"{where} env[{variable['name']}]", pod.namespace, found["name"], found["key"], found.get("optional", False)
    for pod in bundle.pods:
        for volume in pod.spec.get("volumes") or []:
            sources = [volume, *((volume.get("projected") or {}).get("sources") or [])]
            for found in (source[kind] for source in sources if kind in source):
                name = found.get("secretName") or found.get("name")
                keys = [item["key"] for item in found.get("items") or []] or [None]
                yield from (
                    (f"{pod.owner} {pod.name} volumes[{volume['name']}]", pod.namespace, name, key, found.get("optional", False))
                    for key in keys
                )


def config_maps_exist(bundle: Bundle) -> Wrong:
    """A pod that names a ConfigMap or key that is not there never starts; Kustomize leaves such names alone in kinds it does not know."""
    for where, namespace, name, key, optional in references(bundle, "configMap"):
        document = bundle.find("ConfigMap", name, namespace)
        if document is None and not optional:
            yield where, f"a ConfigMap must be there, got {name!r}; generate it, or name it to Kustomize in `nameReference`"
        elif (
            document is not None
            and key is not None
            and key not in {**(document.get("data") or {}), **(document.get("binaryData") or {})}
        ):
            yield where, f"a ConfigMap must have the key, got {key!r} of {name!r}; correct it"


def secrets_are_announced(bundle: Bundle) -> Wrong:
    """Whoever installs has to know which Secrets to bring, the optional ones too: they stand in secrets.example.yaml, with their keys."""
    known = bundle.repository.secrets
    for where, _, name, key, _ in references(bundle, "secret"):
        if name not in known:
            yield where, f"a Secret must stand in k8s/secrets.example.yaml, got {name!r}; add it there"
        elif key is not None and key not in known[name]:
            yield (
                where,
                f"a Secret must have the key in k8s/secrets.example.yaml, got {key!r} of {name!r}; correct one of the two",
            )


def claims_exist(bundle: Bundle) -> Wrong:
    """A pod waits for ever for a claim that nobody makes."""
    for pod in bundle.pods:
        own = {
            f"{claim['metadata']['name']}-{pod.name}-0"
            for claim in (pod.document.get("spec") or {}).get("volumeClaimTemplates") or []
        }
        for volume in pod.spec.get("volumes") or []:
            name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if name and name not in own and not bundle.find("PersistentVolumeClaim", name, pod.namespace):
                yield (
                    f"{pod.owner} {pod.name} volumes[{volume['name']}]",
                    f"a PersistentVolumeClaim must be there, got {name!r}; write it, or correct the name",
                )


def accounts_exist(bundle: Bundle) -> Wrong:
    """Every pod has an account of its kind, which is there; `default` is nobody's."""
    for pod in bundle.pods:
        needs_name = "serviceAccountName" not in pod.spec and any(
            container["name"] == "autoscaler" for container in pod.spec["containers"]
        )
        known = bundle.find("ServiceAccount", pod.service_account, pod.namespace)
        if needs_name or (pod.service_account != "default" and not known):
            yield (
                f"{pod.owner} {pod.name}",
                f"a ServiceAccount must be there, got {pod.service_account!r}; write it, or correct the name",
            )


def mounts_have_volumes(bundle: Bundle) -> Wrong:
    """A mount needs a volume of its name, and a path holds one."""
    for where, pod, container in bundle.containers:
        volumes = {volume["name"] for volume in pod.spec.get("volumes") or []}
        paths = [mount["mountPath"].rstrip("/") for mount in container.get("volumeMounts") or []]
        for mount in container.get("volumeMounts") or []:
            if mount["name"] not in volumes:
                yield where, f"a mount must name a volume of its pod, got {mount['name']!r}; known: {', '.join(sorted(volumes))}"
        for path in sorted({path for path in paths if paths.count(path) > 1}):
            yield where, f"a path must be mounted once, got {path!r} twice; remove one"


def names_are_unique(bundle: Bundle) -> Wrong:
    """Of two variables of a name the last one counts; two volumes or ports of a name are refused."""
    lists = [(where, "env", container.get("env")) for where, _, container in bundle.containers]
    lists += [(where, "ports", container.get("ports")) for where, _, container in bundle.containers]
    lists += [(f"{pod.owner} {pod.name}", "volumes", pod.spec.get("volumes")) for pod in bundle.pods]
    for where, what, entries in lists:
        names = [entry["name"] for entry in entries or [] if entry.get("name")]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{where} {what}", f"names must differ, got {name!r} twice; remove one"


def objects_are_unique(bundle: Bundle) -> Wrong:
    """Of two objects of a name the one that is applied last would win."""
    seen: set[tuple[str, str]] = set()
    for document in bundle.documents:
        key = (str(document["metadata"].get("namespace")), title(document))
        if key in seen:
            yield title(document), "an object must be written once, got it twice; remove one"
        seen.add(key)


def weights_are_read_only(bundle: Bundle) -> Wrong:
    """Only the Job that fetches them writes weights; a job that could change them could change every later one."""
    for where, pod, container in bundle.containers:
        claims = {v["name"]: v["persistentVolumeClaim"] for v in pod.spec.get("volumes") or [] if "persistentVolumeClaim" in v}
        for mount in container.get("volumeMounts") or []:
            is_models = claims.get(mount["name"], {}).get("claimName") == "models"
            if is_models and not mount.get("readOnly") and pod.service_account != "prefetch":
                yield where, f"the claim `models` must be mounted read-only, got a writable {mount['mountPath']}; set readOnly"


def services_have_pods(bundle: Bundle) -> Wrong:
    """A selector that finds nobody is a name that leads nowhere; a named port has to be a container's."""
    for service in (
        service for service in bundle.services if any(title(document) == service.owner for document in bundle.documents)
    ):
        pods = backends(service, bundle.network.pods.values())
        if not pods:
            yield (
                f"{service.owner} {service.name}",
                f"a Service must find pods, got none for {dict(service.selector)}; correct the selector",
            )
        for pod in pods:
            for port in service.ports:
                number = target_of(port, pod)
                if number not in [declared for _, declared, protocol in container_ports(pod) if protocol == port.protocol]:
                    yield (
                        f"{service.owner} {service.name}",
                        f"a port must be declared by the containers of {pod.name}, got {port.target!r}; declare it",
                    )


def selectors_match_templates(bundle: Bundle) -> Wrong:
    """A workload whose selector does not find its own pods is refused."""
    for document in bundle.of("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"):
        labels = (document["spec"]["template"].get("metadata") or {}).get("labels") or {}
        if not selects(document["spec"]["selector"], labels) or not document["spec"]["selector"]:
            yield (
                title(document),
                f"the selector must find the template's labels, got {document['spec']['selector']} and {labels}; make them one",
            )
        if document["kind"] == "StatefulSet" and not bundle.find(
            "Service", document["spec"]["serviceName"], document["metadata"].get("namespace", "default")
        ):
            yield title(document), f"serviceName must name a Service, got {document['spec']['serviceName']!r}; correct it"


def _probed(container: Container) -> Iterator[tuple[str, Any]]:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        for kind in ("httpGet", "tcpSocket"):
            action: Mapping[str, Any] = (container.get(name) or {}).get(kind) or {}
            if "port" in action:
                yield name, action["port"]


def probes_have_ports(bundle: Bundle) -> Wrong:
    """A probe of a port that nobody serves restarts a healthy pod. KubeRay's own ask Ray's agent, which declares none."""
    for where, pod, container in bundle.containers:
        declared = container.get("ports") or []
        known = {port.get("name") for port in declared} | {port["containerPort"] for port in declared}
        for name, port in _probed(container):
            if port not in known and not (pod.role in ("head", "worker") and port == 52365):
                yield f"{where} {name}", f"a probe must ask a declared port, got {port!r}; declare it, or correct it"


RULES = table(
    config_maps_exist, secrets_are_announced, claims_exist, accounts_exist, mounts_have_volumes, names_are_unique, objects_are_unique,
    weights_are_read_only, services_have_pods, selectors_match_templates, probes_have_ports,
)  # fmt: skip
