"""Environment variables of manifests: somebody reads them, and they say what is allowed."""

import re
from typing import Any

import yaml

from grun.config import Recipe
from grun.errors import ConfigError
from k8s.check.bundle import Bundle, is_ours
from k8s.check.pod import Container
from k8s.check.rule import Wrong, table
from k8s.check.services import services
from k8s.check.variables import is_read, variables_of

__all__ = ["RULES"]

_REFERENCE = re.compile(r"(?<!\$)\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_KUBERAYS = frozenset({"autoscaler", "wait-gcs-ready"})
"""Containers that KubeRay adds, and that load nothing: it does not copy `envFrom` to them."""
_NO_FIELDS = frozenset({"GRUN_API_KEY"})


def variables_are_read(bundle: Bundle) -> Wrong:
    """A misspelt variable is silent: its default goes on."""
    for where, pod, container in bundle.containers:
        for name, _ in variables_of(bundle, pod, container):
            is_field = name.startswith("GRUN_") and name not in _NO_FIELDS
            if not is_field and not is_read(name, bundle, container):
                yield where, f"a variable must be read by somebody, got {name!r}; correct it, or add it to k8s/check/variables.py"


def recipe_variables_are_fields(bundle: Bundle) -> Wrong:
    """GRUN_... changes a field of the recipe; one that names none ends every verb."""
    fields = {f"GRUN_{path.replace('.', '__')}".upper(): path for path in bundle.repository.recipe_fields}
    for where, pod, container in bundle.containers:
        for name, value in variables_of(bundle, pod, container):
            if not name.startswith("GRUN_") or name in _NO_FIELDS or not is_ours(container):
                continue
            if name.upper() not in fields:
                yield (
                    where,
                    f"a GRUN_ variable must name a field of a recipe, got {name!r}; see `python pipelines/sweep.py --help`",
                )
            elif value is not None and (wrong := _refused(fields[name.upper()], value)):
                yield where, f"a GRUN_ variable must have a value that its field takes, got {value!r}: {wrong}; correct it"


def _refused(path: str, text: str) -> str | None:
    """What the schema has against a value; None where nothing. Of a section with kinds only the name is looked at."""
    *parents, leaf = path.split(".")
    nested: Any = {leaf: yaml.safe_load(text)}
    for parent in reversed(parents):
        nested = {parent: nested}
    try:
        Recipe.parse(nested)
    except ConfigError as error:
        return None if "unknown key" in str(error) else str(error)
    return None


def expansions_have_values(bundle: Bundle) -> Wrong:
    """`$(NAME)` of a variable that the container does not have stays as it is, brackets and all."""
    for where, pod, container in bundle.containers:
        names = {name for name, _ in variables_of(bundle, pod, container)}
        for found in _expansions(container):
            if found not in names:
                yield (
                    where,
                    f"$({found}) must be a variable of the container, got none of that name; add it, or write $$({found})",
                )


def _expansions(container: Container) -> list[str]:
    texts = [
        *(container.get("command") or []),
        *(container.get("args") or []),
        *(str(v.get("value", "")) for v in container.get("env") or []),
    ]
    return [name for text in texts for name in _REFERENCE.findall(str(text))]


def mlflow_knows_its_names(bundle: Bundle) -> Wrong:
    """MLflow answers 403 to a name that it was not told, while /health stays green; setting the list takes the default away."""
    for where, pod, container in bundle.containers:
        if "mlflow" not in (container.get("command") or [])[:1]:
            continue
        allowed = dict(variables_of(bundle, pod, container)).get("MLFLOW_SERVER_ALLOWED_HOSTS") or ""
        for service in services(bundle.everything):
            if service.namespace == pod.namespace and service.selector and service.selector.items() <= dict(pod.labels).items():
                wanted = [f"{host}:{port.number}" for port in service.ports for host in service.hosts]
                missing = [name for name in wanted if name not in allowed.split(",")]
                if missing:
                    yield (
                        where,
                        f"MLFLOW_SERVER_ALLOWED_HOSTS must hold every name with its port, got none of {', '.join(missing)}; add them",
                    )


def served_with_a_key(bundle: Bundle) -> Wrong:
    """The network policy says which pods may ask; the key says who in them."""
    for pod in bundle.pods:
        if pod.owner.startswith("RayService/") and pod.role == "worker":
            names = {name for name, _ in variables_of(bundle, pod, pod.spec["containers"][0])}
            if "GRUN_API_KEY" not in names:
                yield f"{pod.owner} {pod.name}", "a server must have GRUN_API_KEY from a Secret, got none; add the secretRef"


def stays_offline(bundle: Bundle) -> Wrong:
    """Nothing is downloaded at run time, and nothing is told to anybody; only the Job that fetches weights goes out."""
    wanted = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "true"}
    for where, pod, container in bundle.containers:
        if not is_ours(container) or pod.service_account == "prefetch" or container["name"] in _KUBERAYS:
            continue
        found = dict(variables_of(bundle, pod, container))
        wrong = {name: found.get(name) for name, value in wanted.items() if found.get(name) != value}
        if wrong:
            yield where, f"our containers must be offline, got {wrong}; take them from the ConfigMap `environment`"


RULES = table(
    variables_are_read,
    recipe_variables_are_fields,
    expansions_have_values,
    mlflow_knows_its_names,
    served_with_a_key,
    stays_offline,
)
