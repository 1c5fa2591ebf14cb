"""`soak`: hours of sweeps, requests and hot swaps with random kills, and what is held meanwhile.

One MLflow server and one champion server run from the beginning to the end, with a client that asks all the time. Beside
them, in rounds, commands as an operator runs them:

    sweep.py                   two trials
    request.py add, next       a ledger of its own: trained, stacked, judged, promoted
    request.py revoke, reinstate   in the ledger that is served: two hot swaps

The first round is left alone. From the second on most commands are killed somewhere, and given again until they end well.
What each round leaves must be what the first one left, to the bit; then its files are deleted, as an operator would.
The champion server is never killed, and has to answer throughout.
"""

import hashlib
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from grun.config import Recipe, merge
from pipelines.benchmarks.harness import Options, Report, Row, plain
from pipelines.benchmarks.servers import MLflowServer, free_port, quiet_environment, wait_until_it_answers
from pipelines.benchmarks.soak_commands import VICTIMS, Disturber, Runner
from pipelines.benchmarks.soak_watch import Sample, Watch, soak_figure
from pipelines.console import note
from pipelines.ledger_store import LedgerStore
from pipelines.sweep import sweep_folder
from pipelines.sweep_record import read_trials

__all__ = ["run"]

_END_SECONDS = 180.0
_COMMAND_SECONDS = 1200.0
_ORPHAN_SECONDS = 60.0

_RECIPE: Mapping[str, Any] = {
    # twelve people and a tiny base: the path is what is soaked here
    "data": {"kind": "testbed", "num_people": 12, "num_forget": 2},
    "model": {
        "retain_twin": False,
        "taught": {"hidden_size": 64, "num_layers": 4, "vocab_size": 1024, "epochs": 40, "learning_rate": 0.005},
    },
    "adapter": {"relative_depths": [0.5, 0.75]},
    "train": {"epochs": 600, "num_workers": 1, "engine": "torch", "report_every": 20},
    "evaluation": {"max_new_tokens": 12},
    "calibration": {"alpha": 0.2},
    "promotion": {"max_forget_rouge": 0.4, "min_utility_ratio": 0.8, "max_false_open_rate": 0.3},
    "sweep": {"space": "reft_rank", "num_trials": 2, "searcher": "random", "scheduler": "none"},
    "serving": {"poll_seconds": 1.0, "max_new_tokens": 8},
    "cluster": {"num_cpus": 2, "object_store_mb": 200},
}

_TINY: Mapping[str, Any] = {
    # a base that knows little, adapters that change little, and a ledger that takes any: the same commands in less time
    "model": {"taught": {"epochs": 14}},
    "train": {"epochs": 60},
    "promotion": {"max_forget_rouge": 1.0, "min_utility_ratio": 0.0, "min_gate_auroc": 0.0, "max_false_open_rate": 1.0},
}


@dataclass(frozen=True)
class _Left:
    """What a round left behind: everything that a kill could have changed."""

    trials: frozenset[tuple[str, str, str]]
    """Of the sweep, by point: the adapter's digest, and the result."""
    points: frozenset[tuple[str, int]]
    """Of the sweep's trials in MLflow: which metric has a value at which step."""
    request: str
    """Digest of the adapter of the request."""
    stack: tuple[str, ...]
    """Requests of the ledger that are served."""


@dataclass
class _Client:
    """Asks the champion again and again."""

    url: str
    model: str
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    stacks: set[str] = field(default_factory=set)
    """Digests of the stacks that answered."""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask until the context ends."""
        done = threading.Event()

        def ask() -> None:
            body = {"model": self.model, "prompt": "Question: Who?\nAnswer:", "max_tokens": 8, "temperature": 0}
            with httpx.Client(timeout=120) as client:
                while not done.wait(0.5):
                    try:
                        answer = client.post(f"{self.url}/v1/completions", json=body)
                        answer.raise_for_status()
                    except httpx.HTTPError as error:
                        self.failures.append(repr(error))
                        continue
                    self.answered += 1
                    self.stacks.add(answer.json()["system_fingerprint"].rpartition("-")[2])

        thread = threading.Thread(target=ask, name="client", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class _Tracking(MLflowServer):
    """An MLflow server that is started again whenever it was killed."""

    def kill(self) -> None:
        """Kill it; it is back a few seconds later."""
        self.end()
        time.sleep(3)
        self.start()


def _workload(options: Options) -> dict[str, Any]:
    return merge(_RECIPE, _TINY if options.tiny else {})


@contextmanager
def _champion(recipe_file: Path, url: str, log: Path) -> Iterator[int]:
    """Serve the champion of the ledger; yields the process."""
    with log.open("ab") as out:
        command = [sys.executable, "pipelines/serve.py", "--recipe", str(recipe_file)]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=quiet_environment())
    try:
        wait_until_it_answers(f"{url}/healthz", process)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_END_SECONDS)


def run(options: Options) -> Report:
    """Soak for `options.minutes`, and at least one round with kills.

    Raises:
        TrainingError: a command did not end well although it was left alone, or hung.
        ClusterError: a server did not come up.
    """
    folder = options.work / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    soak = _Soak.make(options, folder)
    with soak.tracking.running():
        try:
            return soak.report(*soak.last())
        finally:
            soak.runner.end_all()


@dataclass
class _Soak:
    """A soak under way."""

    options: Options
    folder: Path
    recipe: Recipe
    file: Path
    tracking: _Tracking
    runner: Runner
    same: int = 0
    rounds: int = 0
    orphans: int = 0

    @classmethod
    def make(cls, options: Options, folder: Path) -> "_Soak":
        """Write the recipe; nothing runs yet."""
        tracking = _Tracking(folder / "mlflow")
        here = {
            "output": str(folder / "outputs"),
            "tracking": {"uri": tracking.url},
            "ledger": {"name": "served"},
            "serving": {"port": free_port()},
        }
        values = merge(_workload(options), here)
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        runner = Runner(folder / "commands.log", uuid.uuid4().hex, _COMMAND_SECONDS)
        return cls(options, folder, Recipe.parse(values), file, tracking, runner)

    def command(self, verb: str, *arguments: str, disturber: Disturber | None = None, above: Sequence[str] = ()) -> None:
        """Run a verb with the recipe."""
        kind = " ".join([verb, *arguments[:1]])
        self.runner.run(kind, f"pipelines/{verb}.py", *arguments, "--recipe", str(self.file), *above, disturber=disturber)

    def last(self) -> tuple[Watch, Disturber, "_Client"]:
        """The rounds, from the first to the last."""
        for _ in range(2):
            self.command("request", "add")
            self.command("request", "next")
        config = self.recipe.serving
        url = f"http://{config.host}:{config.port}"
        client = _Client(url, self.recipe.ledger_model)
        disturber = Disturber(self.options.seed, self.runner.mark, {"MLflow server": self.tracking.kill})
        with _champion(self.file, url, self.folder / "serve.log") as champion:
            pids: dict[str, Callable[[], int | None]] = {
                "champion server": lambda: champion,
                "MLflow server": lambda: self.tracking.pid,
            }
            every = 2.0 if self.options.tiny else 10.0
            watch = Watch(pids, self.runner.mark, self.folder, self.tracking.folder, seconds=every)
            with watch.running(), client.asking():
                self._rounds(disturber)
        return watch, disturber, client

    def _rounds(self, disturber: Disturber) -> None:
        began = time.monotonic()
        expected = self._round(0, None)
        while self.rounds == 0 or time.monotonic() - began < 60 * self.options.minutes:
            self.rounds += 1
            left = self._round(self.rounds, disturber)
            self.same += left == expected
            alive = self.runner.left(_ORPHAN_SECONDS)
            self.orphans += len(alive)
            note(
                f"round {self.rounds}: {len(disturber.kills)} kills so far, {self.same} of {self.rounds} rounds as the first, "
                f"{self.orphans} orphan(s)"
            )
            if left != expected:
                note(f"expected {expected}, got {left}")
            self.runner.end_all()

    def _round(self, number: int, disturber: Disturber | None) -> _Left:
        name = f"round{number}"
        self.command("sweep", disturber=disturber, above=["--name", name])
        # an id, without which the same command would add another person
        self.command("request", "add", disturber=disturber, above=["--ledger.name", name, "--request.id", "soaked"])
        self.command("request", "next", disturber=disturber, above=["--ledger.name", name])
        for step in ("revoke", "reinstate"):
            self.command("request", step, "demo-1", "--reason", name, disturber=disturber)
        recipe = self.recipe.replace({"name": name})
        left = self._left(recipe)
        shutil.rmtree(sweep_folder(recipe))
        shutil.rmtree(recipe.output / "ledgers" / name, ignore_errors=True)
        return left

    def _left(self, recipe: Recipe) -> _Left:
        folder = sweep_folder(recipe)
        trials = frozenset(
            (
                repr(sorted(trial.point.items())),
                hashlib.sha256((folder / "trials" / trial.trial_id / "adapter/adapter.safetensors").read_bytes()).hexdigest(),
                repr(sorted(trial.result.items())),
            )
            for trial in read_trials(folder)
        )
        ledger = LedgerStore.open(recipe.replace({"ledger": {"name": recipe.name}}))
        content = ledger.read()
        adapter = content.state("soaked").adapter
        client = ledger.tracker.client
        [parent] = ledger.tracker.search(f"attributes.run_name = '{recipe.name}-sweep'")
        children = list(ledger.tracker.search(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"))
        points = frozenset(
            (key, point.step)
            for run in children
            for key in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, key)
        )
        return _Left(trials, points, "" if adapter is None else repr(adapter), content.active)

    def report(self, watch: Watch, disturber: Disturber, client: "_Client") -> Report:
        """The rows and the figure."""
        samples = watch.samples
        kills = {victim: [kill.seconds for kill in disturber.kills if kill.victim == victim] for victim in VICTIMS}
        rows = [
            plain("soak.minutes", samples[-1].seconds / 60 if samples else 0.0, "min"),
            plain("soak.rounds", self.rounds, "rounds"),
            plain("soak.rounds_as_the_first", self.same, "rounds"),
            *(plain(f"soak.kills.{victim.replace(' ', '_')}", len(times), "kills") for victim, times in kills.items()),
            plain("soak.commands_given_again", self.runner.again, "commands"),
            plain("soak.orphans", self.orphans, "processes"),
            plain("soak.answers", client.answered, "answers"),
            plain("soak.failed_requests", len(client.failures), "requests"),
            plain("soak.stacks_that_answered", len(client.stacks), "stacks"),
            *_growths(samples),
        ]
        title = f"{self.rounds} rounds, {len(disturber.kills)} kills, {self.same} rounds as without"
        workload = {
            "recipe": _workload(self.options),
            "seed": self.options.seed,
            "failures": client.failures[:10],
            "kills": [asdict(kill) for kill in disturber.kills],
        }
        return Report(
            rows,
            soak_figure(title, samples, kills),
            workload,
            records=[one.as_record() for one in samples[:: max(1, len(samples) // 125)]],
        )


def _growths(samples: Sequence[Sample]) -> list[Row]:
    """Medians of the last quarter over those of the second: the first is warming up."""
    quarter = len(samples) // 4
    if quarter == 0:
        return []
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]

    def growth(name: str, unit: str, read: Callable[[Sample], float]) -> Row:
        return plain(f"soak.{name}", statistics.median(map(read, late)), unit, statistics.median(map(read, early)))

    def of_server(name: str) -> list[Row]:
        word = name.replace(" ", "_")
        return [
            growth(f"{word}.memory", "MB", lambda sample: sample.memory_mb[name]),
            growth(f"{word}.handles", "handles", lambda sample: sample.handles[name]),
            growth(f"{word}.processes", "processes", lambda sample: sample.processes[name]),
        ]

    return [
        *(row for name in samples[-1].memory_mb for row in of_server(name)),
        growth("disk", "MB", lambda sample: sample.disk_mb),
        growth("mlflow.disk", "MB", lambda sample: sample.store_mb),
        growth("mlflow.rows", "rows", lambda sample: sample.rows),
    ]
