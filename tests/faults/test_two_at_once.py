"""Two commands of one name at the same time: the second is refused at once, and told who the first is."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.holding import holding
from tests.faults.commands import finished, running
from tests.faults.holding_still import at, reached
from tests.faults.injection import Injection
from tests.faults.table import row

pytestmark = pytest.mark.faults  # commands start

ROOT = Path(__file__).parents[2]


@contextmanager
def unlocked(_holding: object, folder: Path) -> Iterator[None]:
    """What takes the place of `holding`."""
    folder.mkdir(parents=True, exist_ok=True)
    yield


UNLOCKED = Injection("pipelines.holding:holding", "replace", always=True, by="tests.faults.test_two_at_once:unlocked")


@row(
    "two at once",
    "two sweeps of one name",
    where="`sweep`",
    sees="the second: who works there since when, status 2, at once; after a SIGKILL of the first it is free",
    broken=UNLOCKED,
    case="sweep",
)
@row(
    "two at once",
    "two trainings of one name",
    where="`train`",
    sees="the second: who works there since when, status 2, at once; after a SIGKILL of the first it is free",
    broken=UNLOCKED,
    case="train",
)
@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_the_second_is_refused_and_told_who_the_first_is(verb: str, recipe_file: Callable[..., str], tmp_path: Path) -> None:
    options = ["--recipe", recipe_file(name="both")]
    folder = tmp_path / "outputs" / {"train": "runs", "sweep": "sweeps"}[verb] / "both"
    place, pipe = at("pipelines.cluster:connected", tmp_path)
    with running(verb, *options, injections=[place], **pipe) as first:
        reached(first, pipe)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        message = finished(verb, *options).message
        assert f"a run's folder, got {str(folder)!r}, which is held by " in message
        assert f":{first.process.pid}, since 20" in message
        assert "wait for its end, or choose another `name`" in message
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    with holding(folder):
        pass


HOLDER = """
import sys
from grun.errors import GrunError
from pipelines.lease import LEDGER, PROMOTION, hold_lease
from pipelines.mlflow_store import Store
from pipelines.owner import process_owner

store, held = Store(sys.argv[1]), []
for purpose in (PROMOTION, LEDGER):
    lease = hold_lease(store, purpose.holder, process_owner(), 3600, purpose=purpose)
    try:
        print("held", lease.__enter__().number, flush=True)
        held.append(lease)
    except GrunError as error:
        print(type(error).__name__, error, flush=True)
sys.stdin.readline()
for lease in held:
    lease.__exit__(None, None, None)
"""


class Holder:
    """A process that asks for both leases, a promoter's and a ledger worker's, and keeps what it got until it is told."""

    def __init__(self, uri: str) -> None:
        command = [sys.executable, "-c", HOLDER, uri]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.promotion, self.ledger = (self.process.stdout.readline().strip() for _ in range(2))

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate("\n")


@row(
    "two at once",
    "two promoters, two runs of a ledger; one is killed while it holds the lease",
    where="`promote`, `request next`",
    sees="the second: who holds it until when, status 2; the third takes over, fenced above the one that was killed",
    broken=Injection("pipelines.lease:is_gone", "skip", always=True),
)
def test_one_promoter_and_one_worker_at_a_time_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with Holder(uri) as first:
        assert (first.promotion, first.ledger) == ("held 1", "held 1")
        with Holder(uri) as second:
            assert second.promotion.startswith("PromotionBusyError one promoter at a time may work on promoter, got")
            assert second.ledger.startswith("LedgerBusyError one worker at a time may work on worker, got")
            assert all(f":{first.process.pid}' holds its lock until" in said for said in (second.promotion, second.ledger))
        first.process.kill()
        first.process.wait()
        with Holder(uri) as third:
            assert (third.promotion, third.ledger) == ("held 2", "held 2")
