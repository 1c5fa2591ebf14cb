"""The standing system of the laptop's overlay, started as controllers would: what `kubectl apply -k` leads to, without Kubernetes."""

import copy
import resource
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from k8s import dev_secrets
from k8s.check.pod import Pod as Template
from k8s.check.pods import effective_pods
from k8s.check.render import REPOSITORY, render
from k8s.check.services import services
from tests.k8s.nodes.cluster import Cluster
from tests.k8s.nodes.image import Image, postgres_image, project_image, seaweedfs_image
from tests.k8s.nodes.pod import Pod

__all__ = ["HEAD", "NAMESPACE", "OVERLAY", "System", "overlay", "printed", "standing_system"]

OVERLAY = REPOSITORY / "k8s" / "overlays" / "local-cpu"
NAMESPACE, HEAD = "unlearning", "http://unlearn-head-svc:8265"
_JOB_SECONDS = 300.0
_SUBMIT = ("ray", "job", "submit", "--address", HEAD, "--")
_ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\ngrun:x:1000:1000::/tmp/home:/usr/sbin/nologin\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n"


@dataclass
class System:
    """Pods that run, and what to do with them."""

    cluster: Cluster
    templates: Mapping[str, Template]
    head: Pod
    workers: list[Pod]
    submitter: Pod
    mlflow: Pod
    postgres: Pod
    object_store: Pod
    _made: int = field(default=0, init=False)

    @property
    def pods(self) -> list[Pod]:
        """All that stand."""
        return [self.head, *self.workers, self.submitter, self.mlflow, self.postgres, self.object_store]

    @property
    def results(self) -> Path:
        """The volume that all of them share."""
        return self.cluster.claim(NAMESPACE, "results")

    def submit(self, *command: str, seconds: float, **variables: str) -> "subprocess.CompletedProcess[str]":
        """`ray job submit`, as somebody with the token gives it; ends when the job has."""
        return self.submitter.execute([*_SUBMIT, *command], timeout=seconds, **variables)

    def submit_beside(self, *command: str, log: Path) -> "subprocess.Popen[bytes]":
        """The same, without waiting for its end; what it prints goes to a file."""
        return self.submitter.spawn([*_SUBMIT, *command], log)

    def replace(self, worker: Pod) -> Pod:
        """What KubeRay does when a worker pod is gone: another one of its group, under another name and address."""
        self._made += 1
        new = self.cluster.start(self.templates["unlearn-worker-cpu"], f"unlearn-worker-cpu-new{self._made}")
        self.workers[self.workers.index(worker)] = new
        return new


@contextmanager
def standing_system(recipes: Mapping[str, str], folder: Path) -> Iterator[System]:
    """Start everything of the overlay, and end it with the context.

    Args:
        recipes: further files of the ConfigMap `recipe`, which is mounted at /config.
        folder: for files of the test.
    """
    documents = [*overlay(), *dev_secrets.documents()]
    for document in documents:
        if (document["kind"], document["metadata"]["name"]) == ("ConfigMap", "recipe"):
            document["data"] |= recipes
    templates = {template.name: template for template in effective_pods(documents)}
    with Cluster(documents, services(documents), images(folder)) as cluster:
        yield _start(cluster, templates)


def overlay() -> list[dict[str, Any]]:
    """Everything of the laptop's overlay, the standing system and the workloads; each object once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in (OVERLAY, *(OVERLAY / name for name in ("sweep", "champion", "prefetch"))):
        found |= {(document["kind"], document["metadata"]["name"]): document for document in render(folder)}
    return list(found.values())


def _start(cluster: Cluster, templates: Mapping[str, Template]) -> System:
    """Everything at once, as it would be, but Jobs, which would be started again until what they need is there."""
    postgres, store, head = (cluster.start(templates[name]) for name in ("postgres", "object-store", "unlearn-head"))
    group = templates["unlearn-worker-cpu"]
    workers = [cluster.start(group, f"{group.name}-{index}") for index in range(group.replicas)]
    mlflow = cluster.start(templates["mlflow"])
    cluster.wait_ready(postgres)
    run_job(cluster, templates["mlflow-migrate"])
    cluster.wait_ready(store)
    run_job(cluster, templates["object-store-bucket"])
    submitter = cluster.start(waiting(templates["next-request"]), "submitter")
    cluster.wait_ready(head, *workers, mlflow, submitter)
    run_job(cluster, templates["mlflow-users"])
    return System(cluster, templates, head, workers, submitter, mlflow, postgres, store)


def run_job(cluster: Cluster, template: Template) -> None:
    """Run the pod of a Job to its end, which has to be a good one."""
    pod = cluster.start(template)
    status = pod.wait_completed(_JOB_SECONDS)
    assert status == 0, pod.logs()
    cluster.kill(pod)


def waiting(template: Template) -> Template:
    """The same pod with nothing to do, so that commands can be given to it."""
    spec = copy.deepcopy(dict(template.spec))
    spec["containers"][0] |= {"command": ["sleep", "infinity"], "args": []}
    return replace(template, spec=spec)


def images(folder: Path) -> dict[str, Image]:
    """What stands in for each image."""
    accounts = folder / "passwd"
    accounts.write_text(_ACCOUNTS, encoding="utf-8")
    containerfile = REPOSITORY / "Containerfile"
    app = project_image(containerfile if containerfile.is_file() else None, accounts)
    # nodes allow containers more open files than this machine may allow anybody
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    app = replace(app, environment={**app.environment, "RAY_START_ULIMIT_OPEN_FILES": str(min(most, 65536))})
    return {"grun-pipelines": app, "postgres": postgres_image(accounts), "seaweedfs": seaweedfs_image(app)}


def printed(pod: Pod, command: Sequence[str], *, seconds: float = 120, **variables: str) -> str:
    """What a command in a pod prints; it has to succeed."""
    done = pod.execute(command, timeout=seconds, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
