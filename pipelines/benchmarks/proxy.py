"""A proxy before a real MLflow server, which loses, refuses and holds up what it is told to."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from pipelines.benchmarks.servers import MLflowServer

__all__ = ["Act", "Asked", "Proxy", "proxied"]

_SECONDS = 180

Act = Literal["pass", "drop", "lose", "fail"]
"""What becomes of a request: it is passed on; dropped unread; carried out, but its answer is lost; or answered by 500."""


@dataclass(frozen=True)
class Asked:
    """A request that came to the proxy."""

    method: str
    path: str
    """Without the query."""
    body: bytes = field(repr=False)

    @property
    def kind(self) -> str:
        """What is asked for, whatever about: method and endpoint."""
        parts = self.path.removeprefix("/api/2.0/").split("/")
        return f"{self.method} {'/'.join(parts[:3])}"

    @property
    def has_metrics(self) -> bool:
        """Whether it brings metrics."""
        return self.path.endswith("/runs/log-batch") and bool(self.json.get("metrics"))

    @property
    def json(self) -> dict[str, Any]:
        """The body."""
        values: dict[str, Any] = json.loads(self.body or b"{}")
        return values


class Proxy:
    """Stands before a server. `rule` says what becomes of each request; what was asked, and what became of it, is in `seen`."""

    def __init__(self, server: MLflowServer) -> None:
        self.server = server
        self.rule: Callable[[Asked], Act] = lambda _asked: "pass"
        self.before_answer: Callable[[Asked], None] = lambda _asked: None
        """Called once the server has answered, before its answer goes back."""
        self.on_status: Callable[[Asked, int], None] = lambda _asked, _status: None
        """Called with the status of each of the server's own answers."""
        self.seen: list[tuple[Asked, Act]] = []
        self.uri = ""
        self._deciding = threading.Lock()

    @property
    def num_failed(self) -> int:
        """Requests that were not answered, or by 500."""
        return sum(act != "pass" for _asked, act in self.seen)

    def heal(self) -> None:
        """Pass everything from now on, and forget what was seen."""
        self.rule, self.before_answer = (lambda _asked: "pass"), (lambda _asked: None)
        self.on_status, self.seen = (lambda _asked, _status: None), []

    def decide(self, asked: Asked) -> Act:
        """What becomes of a request; rules are asked one at a time."""
        with self._deciding:
            act = self.rule(asked)
            self.seen.append((asked, act))
        return act

    def forward(self, asked: Asked, target: str, headers: dict[str, str]) -> tuple[int, list[tuple[str, str]], bytes] | None:
        """The server's answer; None where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=_SECONDS)
        try:
            connection.request(asked.method, target, asked.body, {**headers, "Host": f"127.0.0.1:{self.server.port}"})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


@contextmanager
def proxied(server: MLflowServer) -> Iterator[Proxy]:
    """A proxy before a server, for the length of a `with` block."""
    proxy = Proxy(server)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = Asked(self.command, self.path.partition("?")[0], self.rfile.read(int(self.headers.get("Content-Length", 0))))
            act = proxy.decide(asked)
            if act == "fail":
                self.send_error(500)
            if act in ("fail", "drop"):
                return
            answer = proxy.forward(asked, self.path, dict(self.headers.items()))
            proxy.before_answer(asked)
            if answer is None or act == "lose":
                return
            status, headers, body = answer
            proxy.on_status(asked, status)
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the names that the base class looks for

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as front:
        front.daemon_threads = True
        proxy.uri = f"http://127.0.0.1:{front.server_port}"
        thread = threading.Thread(target=front.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            front.shutdown()
            thread.join()
