"""What an MLflow in trouble costs training: a step while the server is well, slow, dead, or answers 500.

A real MLflow server stands behind a proxy that makes the trouble, from right after the run was opened to its end. Real workers on a
warm slot train one run after another, while the driver follows their spool as `train` does. A step is what the spool says, from
the end of the first one to the end of the last. Wall time, as what could be lost is time that workers wait.
"""

import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Literal, get_args

from grun.config import Recipe
from grun.errors import TrackingError
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, interleave
from pipelines.benchmarks.overhead import prepare_case
from pipelines.benchmarks.proxy import Act, Proxy, proxied
from pipelines.benchmarks.servers import MLflowServer
from pipelines.benchmarks.workload import Geometry
from pipelines.caching import ensure_cache
from pipelines.cluster import connected
from pipelines.recording import following
from pipelines.slots import open_slots, train_on_slot
from pipelines.tracking import Tracker

__all__ = ["run"]

Trouble = Literal["healthy", "slow", "dead", "failing"]

_ACTS: Mapping[Trouble, Act] = {"healthy": "pass", "slow": "pass", "dead": "drop", "failing": "fail"}

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
    with server.running(), proxied(server) as proxy, connected(recipe):
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


def _step_seconds(recipe: Recipe, hub: str, tracker: Tracker, proxy: Proxy, kind: Trouble, _repeat: int) -> float:
    """Train once, with trouble from right after the run was opened; seconds of a step."""
    name = f"{kind}-{time.time_ns()}"
    folder = recipe.output / name
    folder.mkdir()
    run_id = tracker.start_run(name)
    with _trouble(proxy, kind), suppress(TrackingError), following(tracker, run_id, folder / "metrics.jsonl", _ignore):
        for _report in train_on_slot(hub, name, recipe, folder):
            pass
    times = [json.loads(line)["time_ms"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return float((times[-1] - times[0]) / (len(times) - 1) / 1000)


def _ignore(_steps: int) -> None:
    """Nobody looks at the progress."""


@contextmanager
def _trouble(proxy: Proxy, kind: Trouble) -> Iterator[None]:
    """Make trouble of a kind for the time of the context."""
    act = _ACTS[kind]
    proxy.rule = lambda _asked: act
    if kind == "slow":
        proxy.before_answer = lambda _asked: time.sleep(_SLOW_SECONDS)
    try:
        yield
    finally:
        proxy.heal()
