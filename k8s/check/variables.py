"""Environment variables: which ones a container has, and whether anybody reads a variable of that name.

A misspelt variable is silent. A name is known if our code reads it, if it names a field of a recipe, if the library that owns its
prefix has it in its source, or if it stands in the short list of what the system and native libraries read.
"""

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from k8s.check.bundle import Bundle
from k8s.check.pod import Container, Pod

__all__ = ["is_read", "variables_of"]

_SYSTEM = frozenset(
    [
        "HOME",
        "LOGNAME",
        "USER",
        "PATH",
        "TMPDIR",
        "TZ",
        "LANG",
        "LC_ALL",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "PYTHONUNBUFFERED",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPATH",
        "PYTHONHASHSEED",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NCCL_SOCKET_IFNAME",
        "NCCL_DEBUG",
        "NCCL_IB_HCA",
        "NCCL_IB_DISABLE",
        "NCCL_ASYNC_ERROR_HANDLING",
        "GLOO_SOCKET_IFNAME",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "TORCH_EXTENSIONS_DIR",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "MPLCONFIGDIR",
        "XDG_CACHE_HOME",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
        "TOKENIZERS_PARALLELISM",
    ]
)
_KUBERAY = frozenset(
    [
        "FQ_RAY_IP",
        "RAY_IP",
        "RAY_PORT",
        "RAY_CLUSTER_NAME",
        "RAY_CLUSTER_NAMESPACE",
        "RAY_HEAD_POD_NAME",
        "KUBERAY_CRD_VER",
        "KUBERAY_GEN_RAY_START_CMD",
        "RAY_DASHBOARD_ADDRESS",
        "RAY_START_ULIMIT_OPEN_FILES",
        "RAY_USAGE_STATS_KUBERAY_IN_USE",
        "RAY_CLOUD_INSTANCE_ID",
        "RAY_NODE_TYPE_NAME",
    ]
)
"""What KubeRay adds, for itself and for scripts."""
_LIBRARIES = {
    "RAY_": (
        "ray/_private",
        "ray/_raylet.so",
        "ray/scripts",
        "ray/dashboard",
        "ray/serve/_private",
        "ray/autoscaler",
        "ray/_common",
    ),
    "MLFLOW_": ("mlflow/environment_variables.py", "mlflow/server", "mlflow/utils/cli_args.py"),
    "DO_NOT_TRACK": ("mlflow/telemetry",),
    "HF_": ("huggingface_hub",),
    "TRANSFORMERS_": ("transformers/utils", "huggingface_hub"),
    "AWS_": ("botocore",),
    "DS_": ("deepspeed",),
}
_IMAGES = {
    "postgres": frozenset(["PGDATA", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "POSTGRES_INITDB_ARGS"]),
    "seaweedfs": frozenset(["WEED_S3_CONFIG"]),
}
"""What the entry points of others' images read, by their documentation."""


def variables_of(bundle: Bundle, pod: Pod, container: Container) -> Iterator[tuple[str, str | None]]:
    """Name and value of a container's variables, as the kubelet makes them; None for what comes from a Secret or the pod itself."""
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix", "")
        if "configMapRef" in source:
            document = bundle.find("ConfigMap", source["configMapRef"]["name"], pod.namespace) or {}
            yield from ((f"{prefix}{key}", value) for key, value in (document.get("data") or {}).items())
        else:
            yield from ((f"{prefix}{key}", None) for key in bundle.repository.secrets.get(source["secretRef"]["name"], ()))
    for variable in container.get("env") or []:
        reference = (variable.get("valueFrom") or {}).get("configMapKeyRef")
        if reference:
            document = bundle.find("ConfigMap", reference["name"], pod.namespace) or {}
            yield variable["name"], (document.get("data") or {}).get(reference["key"])
        else:
            yield variable["name"], variable.get("value")


def is_read(name: str, bundle: Bundle, container: Container) -> bool:
    """Whether somebody in a container reads a variable of this name."""
    used = f"$({name})", f"${name}", f"${{{name}"
    text = str(
        [container.get(field) for field in ("command", "args", "lifecycle", "readinessProbe", "livenessProbe", "startupProbe")]
    )
    image = str(container.get("image")).rpartition("/")[2].split("@")[0].split(":")[0]
    own = name in bundle.repository.variables or name in _SYSTEM or name in _KUBERAY or name in _IMAGES.get(image, ())
    return own or any(form in text for form in used) or _in_library(name)


@functools.cache
def _in_library(name: str) -> bool:
    """Whether the library that owns the prefix has the name in its source; Ray's core knows its settings without the prefix."""
    for prefix, places in _LIBRARIES.items():
        if name.startswith(prefix):
            forms = {name.encode(), *([name.removeprefix(prefix).encode()] if prefix == "RAY_" and name != name.upper() else [])}
            return any(form in content for place in places for content in _contents(place) for form in forms)
    return False


@functools.cache
def _contents(place: str) -> tuple[bytes, ...]:
    package = place.split("/")[0]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return ()
    path = Path(next(iter(found.submodule_search_locations))).parent / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return tuple(file.read_bytes() for file in files)
