"""Small strict schemas of kinds whose own definitions are not at hand: Prometheus' operator and Kueue.

Written by hand, of the fields that our manifests use and no others, after the documentation of their versions: a misspelt or
misplaced field is found, a value that only the controller would refuse is not.
"""

import functools
from collections.abc import Mapping
from typing import Any

from k8s.check.crds import CustomKind

__all__ = ["KINDS", "UNCHECKED", "other_kind"]

UNCHECKED: frozenset[str] = frozenset()
"""Kinds that are shipped and not schema-checked at all, as "apiVersion/kind"."""
_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_FLAG = {"type": "boolean"}
_LABELS = {"type": "object", "additionalProperties": _TEXT}
_QUANTITY = {"x-kubernetes-int-or-string": True, "pattern": r"^[0-9]+(\.[0-9]+)?([numkMGTP]|[KMGTP]i)?$"}
_DURATION = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h|d))+$"}


def _object(required: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required.split()}


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items), "minItems": 1}


_EXPRESSIONS = _list(
    _object("key operator", key=_TEXT, operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}, values=_list(_TEXT))
)
_SELECTOR = _object(matchLabels=_LABELS, matchExpressions=_EXPRESSIONS)
_RELABEL = _object(
    sourceLabels=_list(_TEXT), targetLabel=_TEXT, regex=_TEXT, replacement=_TEXT, separator=_TEXT,
    action={"enum": ["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep"]},
)  # fmt: skip
_ENDPOINT = {
    "path": _TEXT, "interval": _DURATION, "scrapeTimeout": _DURATION, "scheme": {"enum": ["http", "https"]}, "honorLabels": _FLAG,
    "relabelings": _list(_RELABEL), "metricRelabelings": _list(_RELABEL),
    "authorization": _object("credentials", type=_TEXT, credentials=_object("name key", name=_TEXT, key=_TEXT)),
}  # fmt: skip
_MONITOR = {"namespaceSelector": _object(matchNames=_list(_TEXT), any=_FLAG), "jobLabel": _TEXT, "podTargetLabels": _list(_TEXT)}
_ALERT = _object("expr", alert=_TEXT, record=_TEXT, expr=_TEXT, labels=_LABELS, annotations=_LABELS, **{"for": _DURATION})
_QUOTA = _object("name", name=_TEXT, nominalQuota=_QUANTITY, borrowingLimit=_QUANTITY, lendingLimit=_QUANTITY)
_FLAVOURS = _object(
    "coveredResources flavors",
    coveredResources=_list(_TEXT),
    flavors=_list(_object("name resources", name=_TEXT, resources=_list(_QUOTA))),
)
_POLICY = {"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority", "Any"]}
_TOLERATION = _object(key=_TEXT, operator=_TEXT, value=_TEXT, effect=_TEXT)

_KINDS: dict[str, dict[str, Any]] = {
    "monitoring.coreos.com/v1/PodMonitor": _object(
        "spec",
        spec=_object("selector podMetricsEndpoints", selector=_SELECTOR, podMetricsEndpoints=_list(_object("port", port=_TEXT, **_ENDPOINT)), **_MONITOR),
    ),
    "monitoring.coreos.com/v1/ServiceMonitor": _object(
        "spec", spec=_object("selector endpoints", selector=_SELECTOR, endpoints=_list(_object("port", port=_TEXT, **_ENDPOINT)), **_MONITOR)
    ),
    "monitoring.coreos.com/v1/PrometheusRule": _object(
        "spec", spec=_object("groups", groups=_list(_object("name rules", name=_TEXT, interval=_DURATION, rules=_list(_ALERT))))
    ),
    "kueue.x-k8s.io/v1beta2/ResourceFlavor": _object(
        spec=_object(nodeLabels=_LABELS, nodeTaints=_list(_object("key effect", key=_TEXT, value=_TEXT, effect=_TEXT)), tolerations=_list(_TOLERATION))
    ),
    "kueue.x-k8s.io/v1beta2/ClusterQueue": _object(
        "spec",
        spec=_object(
            "resourceGroups",
            cohortName=_TEXT, namespaceSelector=_SELECTOR, queueingStrategy={"enum": ["StrictFIFO", "BestEffortFIFO"]},
            resourceGroups=_list(_FLAVOURS), preemption=_object(withinClusterQueue=_POLICY, reclaimWithinCohort=_POLICY),
            stopPolicy={"enum": ["None", "Hold", "HoldAndDrain"]},
        ),
    ),
    "kueue.x-k8s.io/v1beta2/LocalQueue": _object("spec", spec=_object("clusterQueue", clusterQueue=_TEXT)),
    "kueue.x-k8s.io/v1beta2/WorkloadPriorityClass": _object("value", value=_NUMBER, description=_TEXT),
}  # fmt: skip


@functools.cache
def other_kind(known: str) -> CustomKind | None:
    """The schema of "apiVersion/kind"; None where there is none."""
    return CustomKind(_KINDS[known]) if known in _KINDS else None


KINDS = tuple(_KINDS)
"""The kinds that have a schema here."""
