"""A cluster of pods: one network, the rules of the rendered policies, the names of the rendered Services."""

import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from k8s.check.services import Service
from tests.k8s.nodes.image import Image
from tests.k8s.nodes.manifests import Documents, PodTemplate
from tests.k8s.nodes.network import Network
from tests.k8s.nodes.pod import Pod, PodError
from tests.k8s.nodes.policies import ruleset
from tests.k8s.nodes.services import hosts_file, service_links

__all__ = ["Cluster"]

_READY_SECONDS = 300.0


class Cluster:
    """Starts, replaces and removes pods; all of them are gone when the context ends, however it ends."""

    def __init__(self, documents: Iterable[dict[str, Any]], services: Sequence[Service], images: Mapping[str, Image]) -> None:
        """Take what was rendered.

        Args:
            services: all of them, those that controllers make included.
            images: what stands in for each image, by its name without registry, tag and digest.
        """
        self.documents = Documents.of(documents)
        self.services = services
        self.images = images
        self.pods: list[Pod] = []

    def __enter__(self) -> Self:
        # short, as the path of a socket in it may have no more than a hundred characters
        self.folder = Path(tempfile.mkdtemp(prefix="pods-"))
        self.claims = self.folder / "claims"
        self.network = Network()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pod in self.pods:
            pod.kill()
        self.network.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self, *templates: PodTemplate) -> list[Pod]:
        """Make pods without starting anything in them: they have addresses, rules, and their places behind Services."""
        pods = [self._create(template, template.name) for template in templates]
        self._tell_all()
        return pods

    def _create(self, template: PodTemplate, name: str) -> Pod:
        folder = self.folder / f"{len(list(self.folder.iterdir()))}-{name}"
        folder.mkdir()
        pod = Pod(template, name, self.network, folder)
        self.pods.append(pod)
        return pod

    def start(self, template: PodTemplate, name: str | None = None) -> Pod:
        """Make a pod and start it; whether it is ready, it knows.

        Args:
            name: of this one, where a template has several.
        """
        pod = self._create(template, name or template.name)
        # rules and names first: nothing of it ever runs without them
        self._tell_all()
        links = service_links(self.services, self.pods, pod.namespace)
        pod.start(self.documents, self.images, links, self.claims)
        return pod

    def wait_ready(self, *pods: Pod, seconds: float = _READY_SECONDS) -> None:
        """Wait until pods are ready, all side by side.

        Raises:
            PodError: a container ended, or it took too long.
        """
        deadline = time.monotonic() + seconds
        waiting = list(pods)
        while waiting := [pod for pod in waiting if not pod.is_ready]:
            if time.monotonic() > deadline:
                logs = "\n".join(pod.logs() for pod in waiting)
                raise PodError(f"{[pod.name for pod in waiting]} must be ready within {seconds:g} s:\n{logs}")
            waiting[0].pause()

    def kill(self, pod: Pod) -> None:
        """A pod is gone, from one moment to the next, as with its node."""
        pod.kill()
        self._forget(pod)

    def delete(self, pod: Pod) -> None:
        """A pod ends in order."""
        pod.delete()
        self._forget(pod)

    def _forget(self, pod: Pod) -> None:
        self.pods.remove(pod)
        self._tell_all()

    def _tell_all(self) -> None:
        """Bring names and rules of every pod up to date, as the cluster's DNS and its CNI do."""
        for pod in self.pods:
            pod.sandbox.run(["nft", "-f", "-"], text=ruleset(self.documents, self.pods, pod))
            pod.write_hosts(hosts_file(self.services, self.pods, pod))

    def claim(self, namespace: str, name: str) -> Path:
        """Folder of the volume behind a claim, as the machine sees it."""
        return self.claims / namespace / name
