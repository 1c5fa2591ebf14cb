"""A small cluster, written as documents: what the real manifests are made of, in miniature."""

from typing import Any

from k8s.check.strict_yaml import Document, load

RAY = """
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: unlearn, namespace: unlearning}
spec:
  rayVersion: "2.60.0"
  enableInTreeAutoscaling: true
  authOptions: {mode: token, secretName: unlearn-token}
  autoscalerOptions:
    version: v2
    securityContext: {allowPrivilegeEscalation: false}
  headGroupSpec:
    rayStartParams: {num-cpus: "0", object-store-memory: "200000000", include-dashboard: "true"}
    template:
      metadata: {labels: {part: head, ray.io/node-type: mine}}
      spec:
        serviceAccountName: ray
        containers:
          - name: ray
            image: grun@sha256:aa
            ports: [{name: gcs-server, containerPort: 6379}, {name: dashboard, containerPort: 8265}]
            resources: {limits: {cpu: "2", memory: 2Gi}, requests: {cpu: "1", memory: 2Gi}}
            volumeMounts: [{name: dshm, mountPath: /dev/shm}]
        volumes: [{name: dshm, emptyDir: {medium: Memory, sizeLimit: 1Gi}}]
  workerGroupSpecs:
    - groupName: cpu
      replicas: 2
      minReplicas: 1
      maxReplicas: 4
      rayStartParams: {}
      template:
        spec:
          containers:
            - name: ray
              image: grun@sha256:aa
              env: [{name: HOME, value: /tmp/home}]
              resources: {limits: {cpu: 1500m, memory: 1Gi, nvidia.com/gpu: "2"}}
              securityContext: {readOnlyRootFilesystem: true}
"""

REST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: mlflow, namespace: unlearning}
spec:
  replicas: 2
  selector: {matchLabels: {app: mlflow}}
  template:
    metadata: {labels: {app: mlflow}}
    spec: {containers: [{name: mlflow, image: grun, ports: [{name: http, containerPort: 5000}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: mlflow, namespace: unlearning}
spec: {selector: {app: mlflow}, ports: [{name: web, port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: postgres, namespace: unlearning}
spec:
  serviceName: postgres
  selector: {matchLabels: {app: postgres}}
  template: {metadata: {labels: {app: postgres}}, spec: {containers: [{name: postgres, image: grun, ports: [{containerPort: 5432}]}]}}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {}}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: next-request, namespace: unlearning}
spec: {schedule: "0 3 * * *", jobTemplate: {spec: {template: {spec: {containers: [{name: submit, image: grun}]}}}}}
"""


def cluster() -> Document:
    """The Ray cluster."""
    return load(RAY, where="sample")[0]


def job(**spec: Any) -> Document:
    """A RayJob with a cluster of its own."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"generateName": "sweep-", "namespace": "unlearning"},
        "spec": {"entrypoint": "python /app/pipelines/sweep.py", "rayClusterSpec": cluster()["spec"], **spec},
    }


def service() -> Document:
    """A RayService."""
    spec = cluster()["spec"]
    spec["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"].append({"name": "serve", "containerPort": 8000})
    del spec["enableInTreeAutoscaling"]
    metadata = {"name": "champion", "namespace": "unlearning"}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": {"rayClusterConfig": spec}}


def documents() -> list[Document]:
    """Everything but jobs and RayServices."""
    return [cluster(), *load(REST, where="sample")]
