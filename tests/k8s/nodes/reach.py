"""Who reaches whom: connections that are really tried, from inside one pod to others."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from tests.k8s.nodes.pod import Pod

__all__ = ["Listener", "reached"]

_SECONDS = 2.0
"""How long a connection may take; rules drop what they deny, so nothing answers."""

# every connection at a time, so that all that are denied cost one time limit together
_CONNECT = """
import json, selectors, socket, sys, time
targets, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
selector, reached, deadline = selectors.DefaultSelector(), [], time.monotonic() + seconds
for target in targets:
    one = socket.socket()
    one.setblocking(False)
    if one.connect_ex(tuple(target)) == 0:
        reached.append(target)
    else:
        selector.register(one, selectors.EVENT_WRITE, target)
while selector.get_map() and time.monotonic() < deadline:
    for key, _ in selector.select(max(0, deadline - time.monotonic())):
        selector.unregister(key.fileobj)
        if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            reached.append(key.data)
json.dump(reached, sys.stdout)
"""

_LISTEN = """
import selectors, socket, sys
selector = selectors.DefaultSelector()
for port in sys.argv[1:]:
    selector.register(socket.create_server(("", int(port)), backlog=256), selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        key.fileobj.accept()[0].close()
"""


class Listener:
    """Accepts connections on ports of a pod in which nothing else runs."""

    def __init__(self, pod: Pod, ports: Iterable[int]) -> None:
        command = pod.sandbox.command([sys.executable, "-I", "-S", "-c", _LISTEN, *map(str, sorted(set(ports)))])
        self._process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{pod.name} must listen on {sorted(set(ports))}")

    def close(self) -> None:
        """Stop."""
        self._process.kill()
        self._process.communicate()


def reached(targets: Mapping[str, Sequence[tuple[Pod, int]]], sources: Mapping[str, Pod]) -> set[tuple[str, str, int]]:
    """Try connections; return those that were made, as source, destination and port.

    Args:
        targets: by name of the source: pods and ports to connect to.
        sources: by name: pods that connect, all of them side by side.
    """
    names = {pod.address: name for name, pod in sources.items()}
    names |= {pod.address: pod.name for pairs in targets.values() for pod, _ in pairs if pod.address not in names}
    trying = {}
    for name, pairs in targets.items():
        wanted = json.dumps([[pod.address, port] for pod, port in pairs])
        command = sources[name].sandbox.command([sys.executable, "-I", "-S", "-c", _CONNECT, wanted, str(_SECONDS)])
        trying[name] = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, text=True)
    made = set()
    for name, process in trying.items():
        out, _ = process.communicate(timeout=60)
        if process.returncode:
            raise RuntimeError(f"connections from {name} could not be tried")
        made |= {(name, names[address], port) for address, port in json.loads(out)}
    return made
