"""One container: its file system, its user and its variables, and its processes."""

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.k8s.nodes.environment import expand_all
from tests.k8s.nodes.filesystem import Mount, root_commands
from tests.k8s.nodes.image import Image
from tests.k8s.nodes.machine import in_namespaces
from tests.k8s.nodes.manifests import UnsupportedError
from tests.k8s.nodes.network import Sandbox

__all__ = ["Container", "Identity", "effective_identity"]

_KILL_SECONDS, _SETUP_POLL_SECONDS = 30.0, 0.05
_HONOURED = {
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "allowPrivilegeEscalation",
    "capabilities",
    "readOnlyRootFilesystem",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "supplementalGroups",
}


@dataclass(frozen=True)
class Identity:
    """Who the processes of a container are, and what they may become."""

    user: int
    group: int
    groups: tuple[int, ...]
    may_escalate: bool
    without_capabilities: bool
    read_only_root: bool

    def command(self) -> list[str]:
        """Become it, in front of a command.

        The kernel forgets whose death ends a process when its user changes, so that is said again.
        """
        command = ["setpriv", "--pdeathsig=KILL", f"--reuid={self.user}", f"--regid={self.group}"]
        command.append(f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups")
        if not self.may_escalate:
            command.append("--no-new-privs")
        if self.without_capabilities:
            command += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        return command


def effective_identity(pod: Mapping[str, Any], container: Mapping[str, Any], image_user: str) -> Identity:
    """What the security contexts of a pod and of a container come to.

    Raises:
        PermissionError: `runAsNonRoot` and a user that is root, or one that is known by name only; a kubelet refuses both.
    """
    contexts = {**(pod.get("securityContext") or {}), **(container.get("securityContext") or {})}
    unknown = sorted(contexts.keys() - _HONOURED)
    if unknown:
        raise UnsupportedError(f"security contexts here know {sorted(_HONOURED)}, got {unknown} in container {container['name']}")
    name, _, group = image_user.partition(":")
    user = contexts.get("runAsUser", name)
    if contexts.get("runAsNonRoot") and not (str(user).isdecimal() and int(user)):
        raise PermissionError(f"container {container['name']} must not run as root, got the user {user!r}; set `runAsUser`")
    own = container.get("securityContext") or {}
    capabilities = own.get("capabilities") or {}
    if capabilities.get("add"):
        raise UnsupportedError(f"no capability can be added here, got {capabilities['add']} in container {container['name']}")
    groups = [*contexts.get("supplementalGroups", ()), *([contexts["fsGroup"]] if "fsGroup" in contexts else [])]
    return Identity(
        user=int(user),
        group=int(contexts.get("runAsGroup", group or 0)),
        groups=tuple(groups),
        may_escalate=own.get("allowPrivilegeEscalation", True),
        without_capabilities="ALL" in capabilities.get("drop", ()),
        read_only_root=own.get("readOnlyRootFilesystem", False),
    )


class Container:
    """A container that runs, or has run."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        identity: Identity,
        image: Image,
        environment: Mapping[str, str],
        mounts: Sequence[Mount],
        sandbox: Sandbox,
        folder: Path,
    ) -> None:
        """Start its first process.

        Args:
            folder: for its log and what starts it; of the machine, readable by root alone.
        """
        self.name, self.log = spec["name"], folder / f"{spec['name']}.log"
        self._sandbox = sandbox
        self._become = [*identity.command(), "--", "env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        self._working_dir = spec.get("workingDir") or image.working_dir
        arguments = [
            *(spec.get("command") or image.entrypoint),
            *(spec.get("args") or (() if spec.get("command") else image.command)),
        ]
        stage = folder / f"{spec['name']}.root"
        stage.mkdir()
        commands = root_commands(stage, [*image.mounts, *mounts], image.opened, read_only=identity.read_only_root)
        script = folder / f"{spec['name']}.sh"
        self._started = folder / f"{spec['name']}.started"
        # opened while the machine's files can be seen, and written when the container's own are all that is left
        lines = ["set -e", f"exec 3>{self._started}", *commands, "echo started >&3", "exec 3>&-"]
        script.write_text("\n".join([*lines, self._start(expand_all(arguments, environment))]) + "\n", encoding="utf-8")
        # process 1 of its own namespace: when it ends, or this process does, nothing of the container is left
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--", "sh", str(script)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *sandbox.command(unshare)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
            )

    def _start(self, command: Sequence[str]) -> str:
        return f"cd {shlex.quote(self._working_dir)}\nexec {shlex.join([*self._become, *command])}"

    @property
    def is_running(self) -> bool:
        """Whether its first process lives."""
        return self.process.poll() is None

    @property
    def first_pid(self) -> int:
        """Its process 1, by the machine's count; waits until the container has been set up.

        Raises:
            ProcessLookupError: it has ended.
        """
        while not (self._started.exists() and self._started.stat().st_size):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=_SETUP_POLL_SECONDS)
                break
        pids = self._children()
        if not pids:
            raise ProcessLookupError(
                f"container {self.name} must be running, got an end with {self.process.poll()}: {self.tail()}"
            )
        return pids[0]

    def _children(self) -> list[int]:
        """Process 1 of the container, once what makes its namespaces has started it, and for as long as it lives."""
        if not self.is_running:
            return []
        with suppress(FileNotFoundError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            return [int(pid) for pid in children.read_text(encoding="ascii").split()]
        return []

    def entering(self, command: Sequence[str], **variables: str) -> list[str]:
        """The machine's command that runs a command in it, as `kubectl exec` does: the same user, variables and files.

        Args:
            variables: set beside the container's own.
        """
        script = self._start([*(["env", *(f"{k}={v}" for k, v in variables.items())] if variables else []), *command])
        inside = in_namespaces(self.first_pid, ("mount", "pid", "net", "uts", "ipc"), ["sh", "-ec", script])
        return ["setpriv", "--pdeathsig", "KILL", *inside]

    def execute(self, command: Sequence[str], *, timeout: float, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in it to its end."""
        entering = self.entering(command, **variables)
        return subprocess.run(entering, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)

    def kill(self) -> None:
        """SIGKILL all its processes; when this returns, none is left."""
        # what waits for process 1 ends after it, and process 1 after all others of its namespace
        for pid in self._children() or [self.process.pid]:
            self._send(pid, signal.SIGKILL)
        self.process.wait(timeout=_KILL_SECONDS)

    def terminate(self, grace_seconds: float) -> None:
        """SIGTERM its first process, and SIGKILL all of them if it has not ended in time."""
        for pid in self._children():
            self._send(pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=grace_seconds)
        self.kill()

    def _send(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def tail(self, characters: int = 4000) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]
