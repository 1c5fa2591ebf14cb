"""The `ray start` command that KubeRay 1.7 writes for a head or a worker group.

Flags are sorted by name; "true" makes a bare flag and "false" leaves it out. CPUs, memory and GPUs come from the limits of the
first container where `rayStartParams` and the group's `resources` name none.
"""

import ast
import functools
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from k8s.check.quantities import quantity, whole

__all__ = ["DASHBOARD_AGENT_PORT", "GCS_PORT", "METRICS_PORT", "ray_start_command", "ray_start_flags", "start_params"]

GCS_PORT, DASHBOARD_AGENT_PORT, METRICS_PORT = 6379, 52365, 8080
_TAKE_TRUE_OR_FALSE = frozenset({"log-color", "include-dashboard"})
_GPU = re.compile(r".*gpu\Z|nvidia\.com/mig-\d+g\.\d+gb\Z")
_FIELDS = {"CPU": "num-cpus", "GPU": "num-gpus", "memory": "memory"}
"""What the `resources` of a group are called on the command line; others become custom resources."""


def start_params(group: Mapping[str, Any], *, head: bool, address: str | None, autoscaling: bool) -> dict[str, str]:
    """Complete the `rayStartParams` of a group: its resources and labels, what KubeRay sets, and what the limits say."""
    params = dict(group.get("rayStartParams") or {})
    _add_resources(params, group.get("resources") or {})
    if group.get("labels"):
        params["labels"] = ",".join(f"{name}={value}" for name, value in sorted(group["labels"].items()))
    if head:
        params.setdefault("dashboard-host", "0.0.0.0")
        if autoscaling:
            params["no-monitor"] = "true"
    elif address:
        params.setdefault("address", address)
    params.setdefault("metrics-export-port", str(METRICS_PORT))
    params.setdefault("dashboard-agent-listen-port", str(DASHBOARD_AGENT_PORT))
    params["block"] = "true"
    _add_limits(params, group["template"]["spec"]["containers"][0].get("resources") or {})
    return params


def _add_resources(params: dict[str, str], resources: Mapping[str, Any]) -> None:
    custom = {name: float(quantity(value)) for name, value in resources.items() if name not in _FIELDS}
    params.update({_FIELDS[name]: str(whole(value)) for name, value in resources.items() if name in _FIELDS})
    if custom:
        params["resources"] = f"'{json.dumps(custom, sort_keys=True, separators=(',', ':'))}'"


def _add_limits(params: dict[str, str], resources: Mapping[str, Any]) -> None:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    cpu = limits.get("cpu") or requests.get("cpu")
    if cpu and quantity(cpu):
        params.setdefault("num-cpus", str(whole(cpu)))
    if limits.get("memory"):
        params.setdefault("memory", str(whole(limits["memory"])))
    for name in sorted(limits):
        if _GPU.match(name) and quantity(limits[name]):
            params.setdefault("num-gpus", str(whole(limits[name])))


@functools.cache
def ray_start_flags() -> frozenset[str]:
    """The flags that `ray start` has, without their dashes, by the source of the Ray that is installed; none where there is no Ray."""
    found = importlib.util.find_spec("ray")  # looks for it, and imports nothing
    if found is None or found.origin is None:
        return frozenset()
    tree = ast.parse((Path(found.origin).parent / "scripts/scripts.py").read_text(encoding="utf-8"))
    starts = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "start"]
    options = [call for node in starts for call in node.decorator_list if isinstance(call, ast.Call)]
    words = [
        word.value for call in options for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)
    ]
    return frozenset(flag.removeprefix("--") for word in words if word.startswith("--") for flag in word.split("/"))


def ray_start_command(params: Mapping[str, str], *, head: bool) -> str:
    """Write the command; spaces are KubeRay's own."""
    flags = []
    for name, value in sorted(params.items()):
        if value.lower() not in ("true", "false") or name in _TAKE_TRUE_OR_FALSE:
            flags.append(f" --{name}={value} ")
        elif value.lower() == "true":
            flags.append(f" --{name} ")
    return f"ray start {'--head ' if head else ''}{''.join(flags)}"
