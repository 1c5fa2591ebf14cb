"""One pod: its sandbox, its volumes, its init containers in order, its containers, and whether they are ready."""

import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from tests.k8s.nodes.container import Container, effective_identity
from tests.k8s.nodes.environment import container_environment
from tests.k8s.nodes.filesystem import Mount
from tests.k8s.nodes.image import Image
from tests.k8s.nodes.manifests import Documents, PodTemplate, UnsupportedError
from tests.k8s.nodes.network import Network, Sandbox
from tests.k8s.nodes.probes import passes
from tests.k8s.nodes.volumes import Volumes

__all__ = ["Pod", "PodError"]

_POLL_SECONDS = 0.5
_HONOURED = {
    "containers",
    "initContainers",
    "volumes",
    "securityContext",
    "enableServiceLinks",
    "hostname",
    "subdomain",
    "terminationGracePeriodSeconds",
}
_OF_OTHERS = {
    "serviceAccountName",
    "serviceAccount",
    "automountServiceAccountToken",
    "restartPolicy",
    "activeDeadlineSeconds",
    "affinity",
    "nodeSelector",
    "tolerations",
    "topologySpreadConstraints",
    "priorityClassName",
    "schedulerName",
    "imagePullSecrets",
    "dnsPolicy",
}
"""What schedulers, controllers and admission read; it changes nothing of how a pod runs once it does."""

_CONTAINER = {"name", "image", "command", "args", "workingDir", "env", "envFrom", "ports", "volumeMounts", "securityContext"}
_CONTAINER |= {"startupProbe", "readinessProbe", "livenessProbe"}
_CONTAINER |= {"resources", "imagePullPolicy", "terminationMessagePolicy", "terminationMessagePath", "lifecycle"}


class PodError(Exception):
    """A container ended that should not have, or something took too long; with the ends of logs."""


class Pod:
    """A pod with an address; :meth:`start` runs what is in it."""

    def __init__(self, template: PodTemplate, name: str, network: Network, folder: Path) -> None:
        """Make its namespaces and give it an address. Nothing runs yet, so that rules can be loaded before anything does.

        Args:
            name: of this one; a template may have several.
            folder: an empty folder of the machine for its volumes and logs.
        """
        _refuse_unknown(template)
        self.name, self.namespace, self.spec = name, template.namespace, template.spec
        self.template = template.name
        self.labels: dict[str, str] = dict(template.labels)
        self.annotations: dict[str, str] = dict(template.annotations)
        self.folder = folder
        self.sandbox = Sandbox(setup=f"hostname {template.spec.get('hostname', name)}")
        self.address = network.attach(self.sandbox)
        self.containers: dict[str, Container] = {}
        self._waiting: deque[Mapping[str, Any]] = deque()
        (folder / "etc").mkdir()
        # no name server: libraries that ask one before they read the file would wait for it
        (folder / "etc" / "resolv.conf").write_text(f"search {self.namespace}.svc.cluster.local\n", encoding="utf-8")
        self.write_hosts("127.0.0.1 localhost\n")

    def write_hosts(self, text: str) -> None:
        """Write `/etc/hosts`, in place, as it may be mounted already."""
        with (self.folder / "etc" / "hosts").open("w", encoding="utf-8") as hosts:
            hosts.write(text)

    @property
    def fields(self) -> dict[str, Any]:
        """What downward references can name."""
        return {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "metadata.uid": f"00000000-0000-4000-8000-{int(IPv4Address(self.address)):012d}",
            "metadata.labels": self.labels,
            "metadata.annotations": self.annotations,
            "status.podIP": self.address,
            "status.hostIP": self.address,
            "spec.nodeName": f"node-of-{self.name}",
            "spec.serviceAccountName": self.spec.get("serviceAccountName", "default"),
        }

    def start(self, documents: Documents, images: Mapping[str, Image], links: Mapping[str, str], claims: Path) -> None:
        """Make its volumes and start its first container; :meth:`advance` goes on from there.

        Args:
            images: by name, without registry, tag and digest.
            links: variables of Services.
            claims: folder of all claims.

        Raises:
            LookupError: a ConfigMap, a Secret or a claim is missing.
        """
        specs = [*(self.spec.get("initContainers") or ()), *self.spec["containers"]]
        by_name = {spec["name"]: spec for spec in specs}
        group = (self.spec.get("securityContext") or {}).get("fsGroup")
        volumes = Volumes(documents, self.namespace, self.folder / "volumes", claims, self.fields, by_name, group)
        folders = {}
        for volume in self.spec.get("volumes") or ():
            folders[volume["name"]], commands = volumes.make(volume)
            if commands:
                self.sandbox.run(["sh", "-ec", "\n".join(commands)])
        read_only = {volume["name"] for volume in self.spec.get("volumes") or () if _is_read_only(volume)}

        def run(spec: Mapping[str, Any]) -> Container:
            image = _find_image(spec["image"], images)
            environment = container_environment(
                spec,
                documents,
                self.namespace,
                image=image.environment,
                links=links if self.spec.get("enableServiceLinks", True) else {},
                fields=self.fields,
                containers=by_name,
            )
            identity = effective_identity(self.spec, spec, image.user)
            mounts = [*self._own_mounts(), *_mounts(spec, folders, read_only)]
            variables = {"HOSTNAME": self.name, **environment}
            return Container(spec, identity, image, variables, mounts, self.sandbox, self.folder)

        self._run = run
        self._waiting = deque(specs)
        self.advance()

    def advance(self) -> None:
        """Start what may start now: the next init container when the one before it has ended, or all others.

        Raises:
            PodError: an init container failed.
        """
        inits = len(self.spec.get("initContainers") or ())
        while self._waiting:
            started = len(self.containers)
            if 0 < started <= inits and not self._has_ended(list(self.containers.values())[-1]):
                return
            spec = self._waiting.popleft()
            self.containers[spec["name"]] = self._run(spec)

    def _has_ended(self, container: Container) -> bool:
        status = container.process.poll()
        if status:
            raise PodError(f"{self.name}: init container {container.name} ended with {status}: {container.tail()}")
        return status == 0

    def _own_mounts(self) -> list[Mount]:
        return [Mount(self.folder / "etc" / name, f"/etc/{name}") for name in ("hosts", "resolv.conf")]

    @property
    def _main(self) -> list[Container]:
        """Its containers, init containers left out; those that have started."""
        return [self.containers[spec["name"]] for spec in self.spec["containers"] if spec["name"] in self.containers]

    @property
    def is_ready(self) -> bool:
        """Whether all containers pass their probes (startup and readiness).

        Raises:
            PodError: a container has ended.
        """
        self.advance()
        if self._waiting:
            return False
        for container in self._main:
            if not container.is_running:
                raise PodError(
                    f"{self.name}: container {container.name} ended with {container.process.poll()}: {container.tail()}"
                )
        probes = [
            (spec[kind], self.containers[spec["name"]])
            for spec in self.spec["containers"]
            for kind in ("startupProbe", "readinessProbe")
            if kind in spec
        ]
        return all(passes(probe, container, self.spec, self.address, self.sandbox) for probe, container in probes)

    def wait_completed(self, seconds: float) -> int:
        """Wait until its only container has ended, as that of a Job does; return its exit status."""
        deadline = time.monotonic() + seconds
        while not self._waiting_is_over(deadline):
            self.pause()
        [container] = self._main
        try:
            return container.process.wait(timeout=max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise PodError(f"{self.name} must end within {seconds:g} s: {container.tail()}") from None

    def _waiting_is_over(self, deadline: float) -> bool:
        self.advance()
        if self._waiting and time.monotonic() > deadline:
            raise PodError(f"{self.name} must get past its init containers in time:\n{self.logs()}")
        return not self._waiting

    def pause(self) -> None:
        """Wait a moment for news, or until the container that started last ends."""
        with suppress(subprocess.TimeoutExpired):
            list(self.containers.values())[-1].process.wait(timeout=_POLL_SECONDS)

    def logs(self) -> str:
        """The ends of the logs of its containers."""
        return "\n".join(f"--- {self.name}/{container.name}\n{container.tail()}" for container in self.containers.values())

    def execute(self, command: Sequence[str], *, timeout: float = 60, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in its first container."""
        return self._main[0].execute(command, timeout=timeout, **variables)

    def spawn(self, command: Sequence[str], log: Path, **variables: str) -> "subprocess.Popen[bytes]":
        """Start a command in its first container, and do not wait for it; what it prints goes to a file."""
        entering = self._main[0].entering(command, **variables)
        with log.open("wb") as out:
            return subprocess.Popen(entering, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        """SIGKILL everything in it, and let its namespaces and its address go."""
        for container in self.containers.values():
            container.kill()
        self.sandbox.close()

    def delete(self) -> None:
        """End it as a kubelet does: SIGTERM, the grace period, SIGKILL."""
        for container in self._main:
            container.terminate(self.spec.get("terminationGracePeriodSeconds", 30))
        self.kill()


def _refuse_unknown(template: PodTemplate) -> None:
    unknown = sorted(template.spec.keys() - _HONOURED - _OF_OTHERS)
    if unknown:
        raise UnsupportedError(f"pods here know {sorted(_HONOURED | _OF_OTHERS)}, got {unknown} in {template.name}")
    for spec in [*(template.spec.get("initContainers") or ()), *template.spec["containers"]]:
        unknown = sorted(spec.keys() - _CONTAINER)
        if unknown:
            raise UnsupportedError(f"containers here know {sorted(_CONTAINER)}, got {unknown} in {template.name}/{spec['name']}")


def _is_read_only(volume: Mapping[str, Any]) -> bool:
    files = ("configMap", "secret", "projected", "downwardAPI")
    return any(kind in volume for kind in files) or (volume.get("persistentVolumeClaim") or {}).get("readOnly", False)


def _mounts(spec: Mapping[str, Any], folders: Mapping[str, Path], read_only: set[str]) -> list[Mount]:
    mounts = []
    for mount in spec.get("volumeMounts") or ():
        unknown = sorted(mount.keys() - {"name", "mountPath", "readOnly", "subPath"})
        if unknown:
            raise UnsupportedError(f"volumeMounts know name, mountPath, readOnly and subPath here, got {unknown}")
        source = folders[mount["name"]]
        if "subPath" in mount:
            source = source / mount["subPath"]
            if not source.exists():
                source.mkdir(parents=True)
        mounts.append(Mount(source, mount["mountPath"], mount.get("readOnly", False) or mount["name"] in read_only))
    return mounts


def _find_image(reference: str, images: Mapping[str, Image]) -> Image:
    """The stand-in of an image, by the last part of its name."""
    name = reference.split("@", 1)[0].rsplit("/", 1)[-1].split(":", 1)[0]
    if name not in images:
        raise UnsupportedError(f"images here are {sorted(images)}, got {reference!r}")
    return images[name]
