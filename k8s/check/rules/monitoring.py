"""What is watched is there: ports of monitors, series of alerts and dashboards."""

import json
import re
from collections.abc import Iterator
from typing import Any

from k8s.check.bundle import STRANGERS, Bundle
from k8s.check.pod import container_ports
from k8s.check.pods import namespace_of, title
from k8s.check.rule import Wrong, table
from k8s.check.selectors import selects

__all__ = ["RULES"]

_OURS = re.compile(r"\bgrun_[a-z_]+")
_SPACE = re.compile(r"\s+")


def monitors_find_ports(bundle: Bundle) -> Wrong:
    """A monitor of pods or ports that are not there shows nothing, and nothing says so."""
    for monitor in bundle.of("PodMonitor"):
        spaces = (monitor["spec"].get("namespaceSelector") or {}).get("matchNames") or [namespace_of(monitor)]
        known = [
            pod
            for pod in bundle.network.pods.values()
            if pod.namespace in spaces and selects(monitor["spec"]["selector"], pod.labels)
        ]
        if not known:
            yield title(monitor), f"a PodMonitor must find pods, got none for {monitor['spec']['selector']}; correct the selector"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if known and not any(name == endpoint["port"] for pod in known for name, _, _ in container_ports(pod)):
                yield title(monitor), f"a monitored port must be declared by a container, got {endpoint['port']!r}; declare it"


def monitors_get_through(bundle: Bundle) -> Wrong:
    """Prometheus comes from another namespace and is let in to what it reads."""
    prometheus = next(pod for pod in STRANGERS if pod.name == "prometheus")
    for monitor in bundle.of("PodMonitor"):
        for pod in bundle.network.pods.values():
            ports = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
            if pod in STRANGERS or not selects(monitor["spec"]["selector"], pod.labels):
                continue
            for name, number, _ in container_ports(pod):
                if name in ports and not bundle.network.allowed(prometheus, pod, number):
                    yield (
                        title(monitor),
                        f"policies must let Prometheus read {pod.name}:{name}, got it closed; add ingress from monitoring",
                    )


def series_exist(bundle: Bundle) -> Wrong:
    """An alert on a series that nobody gives never fires. Series of ours are known from pipelines/serving/metrics.py; others' are not checked."""
    for where, expression in _expressions(bundle):
        for name in sorted(set(_OURS.findall(expression)) - bundle.repository.metrics):
            yield where, f"a series must be one of pipelines/serving/metrics.py, got {name!r}; correct it"


def _expressions(bundle: Bundle) -> Iterator[tuple[str, str]]:
    for rule in bundle.of("PrometheusRule"):
        recorded = [r["record"] for group in rule["spec"]["groups"] for r in group["rules"] if "record" in r]
        for group in rule["spec"]["groups"]:
            for one in group["rules"]:
                text = _SPACE.sub(" ", str(one["expr"]))
                for name in recorded:
                    text = text.replace(name, "")
                yield f"{title(rule)} {one.get('alert') or one.get('record')}", text
    for config, key, dashboard in _dashboards(bundle):
        yield from ((f"{title(config)} {key}", text) for text in _queries(dashboard))


def _dashboards(bundle: Bundle) -> Iterator[tuple[Any, str, Any]]:
    for config in bundle.of("ConfigMap"):
        for key, text in (config.get("data") or {}).items():
            if key.endswith(".json"):
                try:
                    yield config, key, json.loads(text)
                except ValueError:
                    continue


def _queries(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (str(text) for key, text in value.items() if key == "expr")
        value = list(value.values())
    for part in value if isinstance(value, list) else []:
        yield from _queries(part)


def dashboards_are_json(bundle: Bundle) -> Wrong:
    """Grafana leaves out what it cannot read."""
    for config in bundle.of("ConfigMap"):
        for key, text in (config.get("data") or {}).items():
            if key.endswith(".json"):
                try:
                    json.loads(text)
                except ValueError as error:
                    yield f"{title(config)} {key}", f"a dashboard must be JSON, got {error}; mend it"


def alerts_say_what_to_do(bundle: Bundle) -> Wrong:
    """Who is woken wants to know how bad it is, and what it is about."""
    for rule in bundle.of("PrometheusRule"):
        for one in (one for group in rule["spec"]["groups"] for one in group["rules"] if "alert" in one):
            annotations, labels = one.get("annotations") or {}, one.get("labels") or {}
            if not annotations.get("summary") or not labels.get("severity"):
                yield f"{title(rule)} {one['alert']}", "an alert must have a severity and a summary, got one without; write both"


RULES = table(monitors_find_ports, monitors_get_through, series_exist, dashboards_are_json, alerts_say_what_to_do)
