"""Probes of a container, tried once each: httpGet, tcpSocket, exec."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.k8s.nodes.container import Container
from tests.k8s.nodes.manifests import UnsupportedError
from tests.k8s.nodes.network import Sandbox
from tests.k8s.nodes.services import resolve_port

__all__ = ["passes"]

_HTTP = """
import http.client, sys
address, port, path, timeout, host = sys.argv[1:]
connection = http.client.HTTPConnection(address, int(port), timeout=float(timeout))
connection.request("GET", path, headers={"Host": host} if host else {})
sys.exit(not 200 <= connection.getresponse().status < 400)
"""
_TCP = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()"


def passes(probe: Mapping[str, Any], container: Container, spec: Mapping[str, Any], address: str, sandbox: Sandbox) -> bool:
    """Whether a probe passes now.

    A kubelet asks from the node, which no NetworkPolicy keeps out; here the question comes from the pod itself.

    Args:
        spec: the pod's.
        address: the pod's.
    """
    timeout = float(probe.get("timeoutSeconds", 1))
    if "exec" in probe:
        try:
            return container.execute(probe["exec"]["command"], timeout=timeout).returncode == 0
        except subprocess.TimeoutExpired:
            return False
    if "httpGet" in probe:
        get = probe["httpGet"]
        if get.get("scheme", "HTTP") != "HTTP":
            raise UnsupportedError(f"probes here speak HTTP, got {get['scheme']}")
        headers = {entry["name"].lower(): entry["value"] for entry in get.get("httpHeaders") or ()}
        port = resolve_port(get["port"], spec)
        arguments = [_HTTP, get.get("host", address), str(port), get.get("path", "/"), str(timeout), headers.get("host", "")]
    elif "tcpSocket" in probe:
        arguments = [_TCP, address, str(resolve_port(probe["tcpSocket"]["port"], spec)), str(timeout)]
    else:
        raise UnsupportedError(f"a probe is one of exec, httpGet and tcpSocket here, got {sorted(probe)}")
    command = sandbox.command([sys.executable, "-I", "-S", "-c", *arguments])
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
