"""What an MLflow in trouble costs training: a step while the server is well, slow, dead, or answers 500.

A real MLflow server stands behind a proxy that makes the trouble, from right after the run was opened to its end. Real workers on a
warm slot train one run after another, while the driver follows their spool as `train` does. A step is what the spool says, from
the end of the first one to the end of the last. Wall time, as what could be lost is time that workers wait.
"""

import http.client
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, get_args

from grun.config import Recipe
from grun.errors import TrackingError
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, interleave
from pipelines.benchmarks.overhead import prepare_case
from pipelines.benchmarks.servers import MLflowServer
from pipelines.benchmarks.workload import Geometry
from pipelines.caching import ensure_cache
from pipelines.cluster import connected
from pipelines.recording import following
from pipelines.slots import open_slots, train_on_slot
from pipelines.tracking import Tracker

__all__ = ["run"]

Trouble = Literal["healthy", "slow", "dead", "failing"]

_SLOW_SECONDS = 3.0


def run(options: Options) -> Report:
    """Measure a step under each trouble.

    Raises:
        DataError: TOFU is not where it should be.
        ClusterError: the MLflow server does not start.
    """
    shape = Geometry.toy() if options.tiny else Geometry(num_layers=8, hidden_size=128, num_heads=4, vocab_size=2048, context=512)
    epochs = 4 if options.tiny else 80
    recipe, prepared = prepare_case(options, "outage", shape, epochs=epochs, report_every=10)
    recipe.output.mkdir(parents=True, exist_ok=True)
    server = MLflowServer(recipe.output / "mlflow")
    with server.running(), _proxy(server.port) as proxy, connected(recipe):
        cache = ensure_cache(recipe, prepared, [recipe])
        with open_slots(recipe, prepared, cache, recipe.output, 1) as hub:
            tracker = Tracker(proxy.uri, "outage", recipe.output)
            ways = {kind: partial(_step_seconds, recipe, hub, tracker, proxy, kind) for kind in get_args(Trouble)}
            samples = interleave(ways, options.repeats, title="training")
    rows = [_compared(kind, samples[kind], samples["healthy"]) for kind in get_args(Trouble) if kind != "healthy"]
    workload = {"shape": vars(shape), "epochs": epochs, "workers": 1, "slow_seconds": _SLOW_SECONDS, "load": os.getloadavg()}
    return Report(rows, ratio_figure("A training step while MLflow is in trouble", rows), workload)


def _compared(kind: str, steps: list[float], healthy: list[float]) -> Row:
    ratios = [step / other for step, other in zip(steps, healthy, strict=True)]
    name, value, baseline = f"outage.{kind}_over_healthy", statistics.median(steps), statistics.median(healthy)
    return Row(name, value, "s", baseline=baseline, ratio=statistics.median(ratios), low=min(ratios), high=max(ratios))


def _step_seconds(recipe: Recipe, hub: str, tracker: Tracker, proxy: "_Proxy", kind: Trouble, _repeat: int) -> float:
    """Train once, with trouble from right after the run was opened; seconds of a step."""
    name = f"{kind}-{time.time_ns()}"
    folder = recipe.output / name
    folder.mkdir()
    with proxy.trouble("healthy"):
        run_id = tracker.start_run(name)
    with proxy.trouble(kind), suppress(TrackingError), following(tracker, run_id, folder / "metrics.jsonl", _ignore):
        for _report in train_on_slot(hub, name, recipe, folder):
            pass
    times = [json.loads(line)["time_ms"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return float((times[-1] - times[0]) / (len(times) - 1) / 1000)


def _ignore(_steps: int) -> None:
    """Nobody looks at the progress."""


class _Proxy:
    """Passes requests on to the server, unless it is told otherwise."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.uri = ""
        self.kind: Trouble = "healthy"

    @contextmanager
    def trouble(self, kind: Trouble) -> Iterator[None]:
        """Make trouble of a kind for the time of the context."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def answer(self, method: str, target: str, body: bytes, content_type: str) -> tuple[int, bytes] | None:
        """Status and body; None for no answer at all."""
        if self.kind == "dead":
            return None
        if self.kind == "failing":
            return 500, b""
        if self.kind == "slow":
            time.sleep(_SLOW_SECONDS)
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, target, body, {"Content-Type": content_type})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def _proxy(port: int) -> Iterator[_Proxy]:
    proxy = _Proxy(port)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = proxy.answer(self.command, self.path, body, self.headers.get("Content-Type", "application/json"))
            if answer is None:
                return
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        do_GET = do_POST  # noqa: N815 - the name that the base class looks for

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as front:
        proxy.uri = f"http://127.0.0.1:{front.server_port}"
        thread = threading.Thread(target=front.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            front.shutdown()
            thread.join()
