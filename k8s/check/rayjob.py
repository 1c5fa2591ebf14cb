"""What KubeRay 1.7 makes of a RayJob beside its cluster: the pod that submits the job and follows its log.

That pod ends well when the log ends, however the job ended: `ray job logs --follow` knows no better. Only `status.jobStatus` of the RayJob says
what became of the job.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

import yaml

from k8s.check.kuberay import RayCluster, auth_env
from k8s.check.pod import Pod, add_env

__all__ = ["DASHBOARD_PORT", "submitter_pod"]

DASHBOARD_PORT = 8265
_SUBMISSION_ID = "submission-id"
"""Stands for the identifier that KubeRay makes up where `spec.jobId` names none."""


def _submit_command(spec: Mapping[str, Any], address: str, submission: str) -> str:
    """The script of the submitter: submit once, then follow the log."""
    ask = f"import urllib.request as r; r.urlopen('{address}/api/gcs_healthz', timeout=2)"
    options = ["--no-wait"]
    if spec.get("runtimeEnvYAML"):
        options += [
            "--runtime-env-json",
            json.dumps(json.dumps(yaml.safe_load(spec["runtimeEnvYAML"]), separators=(",", ":"), sort_keys=True)),
        ]
    if spec.get("metadata"):
        options += ["--metadata-json", json.dumps(json.dumps(spec["metadata"], separators=(",", ":"), sort_keys=True))]
    options += ["--submission-id", submission]
    for field, flag in (("entrypointNumCpus", "--entrypoint-num-cpus"), ("entrypointNumGpus", "--entrypoint-num-gpus")):
        if spec.get(field):
            options += [flag, f"{float(spec[field]):f}"]
    if spec.get("entrypointResources"):
        options += ["--entrypoint-resources", json.dumps(spec["entrypointResources"])]
    job = f"ray job submit --address {address} {' '.join(options)} -- {spec['entrypoint'].strip()} ;"
    return (
        f'until python -c "{ask}" >/dev/null 2>&1 ; do echo "Waiting for the dashboard at {address} ..." ; sleep 2 ; done ; '
        f"if ! ray job status --address {address} {submission} >/dev/null 2>&1 ; then {job} fi ; "
        f"ray job logs --address {address} --follow {submission}"
    )


def submitter_pod(job: Mapping[str, Any], cluster: RayCluster) -> Pod | None:
    """Return the submitter of a RayJob; None where the mode of submission has none of its own."""
    spec = job["spec"]
    if spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
        return None
    head = cluster.spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    default: dict[str, Any] = {
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "ray-job-submitter",
                    "image": head.get("image"),
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "200Mi"}},
                }
            ],
        }
    }
    template = copy.deepcopy(spec.get("submitterPodTemplate") or default)
    container = template["spec"]["containers"][0]
    ports = {port.get("name"): port["containerPort"] for port in head.get("ports") or []}
    address = f"{cluster.head_address}:{ports.get('dashboard', DASHBOARD_PORT)}"
    submission = spec.get("jobId") or f"{cluster.stem}-{_SUBMISSION_ID}"
    if not container.get("command"):
        container["command"] = ["/bin/bash", "-ce", "--"]
        container["args"] = [_submit_command(spec, f"http://{address}", submission)]
    add_env(container, PYTHONUNBUFFERED="1", RAY_DASHBOARD_ADDRESS=address, RAY_JOB_SUBMISSION_ID=submission)
    add_env(container, **auth_env(cluster.name, cluster.spec))
    metadata = template.get("metadata") or {}
    run = {"batch.kubernetes.io/job-name": cluster.stem, "job-name": cluster.stem}
    return Pod(
        name=f"{cluster.stem}-submitter", namespace=cluster.namespace, owner=cluster.owner, role="submitter",
        labels={**(metadata.get("labels") or {}), **run}, annotations=metadata.get("annotations") or {}, spec=template["spec"], document=job,
    )  # fmt: skip
