"""Small schemas of KubeRay 1.7's kinds, for where its own definitions are not at hand: which fields there are, and of which type.

They know the names that KubeRay added and leave what is Kubernetes' own to others: pods are looked at once they are effective.
"""

import functools
from typing import Any

from k8s.check.crds import CustomKind

__all__ = ["SPECS", "ray_kind"]

Schema = dict[str, Any]
_ANY: Schema = {}
_TEXT, _NUMBER, _FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
"""An object that is not looked into."""


def _of(kind: Schema, names: str) -> dict[str, Schema]:
    return dict.fromkeys(names.split(), kind)


def _object(*fields: dict[str, Schema], required: str = "") -> Schema:
    properties = {name: kind for part in fields for name, kind in part.items()}
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_GROUP = _of(_OBJECT, "labels rayStartParams resources template")
_HEAD = _object(
    _GROUP,
    _of(_FLAG, "enableIngress"),
    _of(_TEXT, "serviceType"),
    _of(_OBJECT, "headService ingressOptions"),
    required="template",
)
_WORKERS = _object(
    _GROUP, _of(_TEXT, "groupName"), _of(_NUMBER, "idleTimeoutSeconds maxReplicas minReplicas numOfHosts priority replicas"), _of(_FLAG, "suspend"),
    {"scaleStrategy": _object(_of(_list(_TEXT), "workersToDelete"))},
    required="groupName template",
)  # fmt: skip
_AUTOSCALER = _object(
    _of(_list(_ANY), "args command env envFrom volumeMounts"), _of(_NUMBER, "idleTimeoutSeconds"),
    _of(_TEXT, "image imagePullPolicy upscalingMode version"), _of(_OBJECT, "resources securityContext"),
)  # fmt: skip
_CLUSTER = _object(
    _of(_TEXT, "managedBy rayVersion"), _of(_FLAG, "enableInTreeAutoscaling suspend"),
    _of(_OBJECT, "gcsFaultToleranceOptions headServiceAnnotations historyServerOptions networkPolicy tlsOptions upgradeStrategy"),
    {
        "authOptions": _object(_of(_FLAG, "enableK8sTokenAuth"), _of(_TEXT, "mode secretName")),
        "autoscalerOptions": _AUTOSCALER, "headGroupSpec": _HEAD, "workerGroupSpecs": _list(_WORKERS),
    },
    required="headGroupSpec",
)  # fmt: skip
SPECS: dict[str, Schema] = {
    "RayCluster": _CLUSTER,
    "RayJob": _object(
        _of(_NUMBER, "activeDeadlineSeconds backoffLimit preRunningDeadlineSeconds ttlSecondsAfterFinished"),
        _of({"type": "number"}, "entrypointNumCpus entrypointNumGpus"), _of(_FLAG, "shutdownAfterJobFinishes suspend"),
        _of(_TEXT, "entrypoint entrypointResources jobId managedBy runtimeEnvYAML submissionMode"),
        _of(_OBJECT, "clusterSelector deletionStrategy metadata submitterConfig submitterPodTemplate"), {"rayClusterSpec": _CLUSTER},
    ),
    "RayService": _object(
        _of(_NUMBER, "deploymentUnhealthySecondThreshold rayClusterDeletionDelaySeconds serviceUnhealthySecondThreshold"),
        _of(_FLAG, "excludeHeadPodFromServeSvc suspend"), _of(_TEXT, "managedBy serveConfigV2"), _of(_OBJECT, "serveService upgradeStrategy"),
        {"rayClusterConfig": _CLUSTER},
        required="rayClusterConfig",
    ),
    "RayCronJob": _OBJECT,  # another rule has something to say about it
}  # fmt: skip
"""What the `spec` of a kind may hold; of `ray.io/v1`."""


@functools.cache
def ray_kind(api_version: str, kind: str) -> CustomKind | None:
    """The schema of a kind; None where KubeRay serves no such kind in this version."""
    return CustomKind(_object({"spec": SPECS[kind]}, required="spec")) if api_version == "ray.io/v1" and kind in SPECS else None
