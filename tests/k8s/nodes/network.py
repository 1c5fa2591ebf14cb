"""The network of the pods: a bridge in a namespace of its own, and an address in each pod's. Nothing of it is in the machine's."""

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Network

from tests.k8s.nodes.machine import in_namespaces, run

__all__ = ["Network", "Sandbox"]

_PODS = IPv4Network("10.244.0.0/16")
_BRIDGE = "br0"


class Sandbox:
    """Namespaces that outlive the processes in them, held open by one that sleeps, as a pod's pause container does."""

    def __init__(self, *, setup: str = "", kinds: Sequence[str] = ("net", "uts", "ipc", "mount")) -> None:
        """Create them.

        Args:
            setup: shell commands that are run inside first.
        """
        self.kinds = tuple(kinds)
        script = f"set -e\n{setup}\necho ready\nexec sleep infinity"
        unshare = ["unshare", *(f"--{kind}" for kind in kinds), "--", "sh", "-c", script]
        # it dies with this process, and with it what it holds
        self._pause = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *unshare], stdout=subprocess.PIPE, text=True)
        assert self._pause.stdout is not None
        if self._pause.stdout.readline() != "ready\n":
            raise RuntimeError(f"namespaces could not be set up with\n{setup}")

    @property
    def pid(self) -> int:
        """The process that holds the namespaces."""
        return self._pause.pid

    def command(self, command: Sequence[str]) -> list[str]:
        """A command, to be run in the namespaces."""
        return in_namespaces(self.pid, self.kinds, command)

    def run(self, command: Sequence[str], *, text: str | None = None) -> str:
        """Run a command that has to succeed in the namespaces, and return what it printed."""
        return run(self.command(command), text=text)

    def close(self) -> None:
        """Let the namespaces go; those that no process is in any more vanish."""
        with suppress(ProcessLookupError):
            self._pause.kill()
        self._pause.wait()
        if self._pause.stdout is not None:
            self._pause.stdout.close()


class Network:
    """A bridge to which sandboxes are attached."""

    def __init__(self) -> None:
        bridge = f"ip link set lo up\nip link add {_BRIDGE} type bridge\nip link set {_BRIDGE} up"
        self._sandbox = Sandbox(setup=bridge, kinds=("net",))
        self._addresses = _PODS.hosts()

    def attach(self, sandbox: Sandbox) -> str:
        """Connect a sandbox; return its address, which no other ever gets."""
        given = next(self._addresses)
        address, port = str(given), f"veth{int(given) & 0xFFFF}"
        # the far end is made in the pod's namespace, so neither of the two is ever in the machine's
        commands = (
            f"ip link add {port} type veth peer name eth0 netns {sandbox.pid}",
            f"ip link set {port} master {_BRIDGE} up",
        )
        self._sandbox.run(["sh", "-ec", "\n".join(commands)])
        inside = (
            "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
            "ip link set lo up",
            f"ip address add {address}/{_PODS.prefixlen} dev eth0",
            "ip link set eth0 up",
        )
        sandbox.run(["sh", "-ec", "\n".join(inside)])
        return address

    def close(self) -> None:
        """Take the bridge down."""
        self._sandbox.close()
