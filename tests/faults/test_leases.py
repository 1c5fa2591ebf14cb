"""Leases of promoters and of a ledger's workers, held by processes that die or whose clocks are wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.injection import CLOCK, Injection, environment
from tests.faults.table import row

ROOT = Path(__file__).parents[2]
DAY = 24 * 3600

HOLDER = """
import sys
from grun.errors import GrunError
from pipelines.lease import LEDGER, PROMOTION, check_lease, hold_lease
from pipelines.mlflow_store import Store
from pipelines.owner import process_owner

store, held = Store(sys.argv[1]), []
for purpose in (PROMOTION, LEDGER):
    lease = hold_lease(store, purpose.holder, process_owner(), 3600, purpose=purpose)
    try:
        given = lease.__enter__()
        print("held", given.number, flush=True)
        held.append((lease, purpose, given))
    except GrunError as error:
        print(type(error).__name__, error, flush=True)
sys.stdin.readline()
for lease, purpose, given in held:
    try:
        check_lease(store, given, purpose=purpose)
        print("still held", flush=True)
    except GrunError as error:
        print(type(error).__name__, error, flush=True)
    lease.__exit__(None, None, None)
"""


class Holder:
    """A process that asks for both leases, a promoter's and a ledger worker's, and keeps what it got until it is told.

    Args:
        clock: seconds by which its clock is ahead.
    """

    def __init__(self, uri: str, *, clock: float = 0) -> None:
        command = [sys.executable, "-c", HOLDER, uri]
        above = environment((), {CLOCK: str(clock)})
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **above}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.promotion, self.ledger = (self.process.stdout.readline().strip() for _ in range(2))

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_: object) -> None:
        self.ended()

    def ended(self) -> list[str]:
        """Let it look whether it still holds what it got, and end; what it says to that."""
        if self.process.stdin is None or self.process.stdin.closed:
            return []
        return self.process.communicate("\n")[0].splitlines()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A store of its own."""
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@row(
    "two at once",
    "two promoters, two runs of a ledger; one is killed while it holds the lease",
    where="`promote`, `request next`",
    sees="the second: who holds it until when, status 2; the third takes over, fenced above the one that was killed",
    broken=Injection("pipelines.lease:is_gone", "skip", always=True),
)
def test_one_promoter_and_one_worker_at_a_time_and_a_dead_one_is_not_waited_for(uri: str) -> None:
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


@row(
    "clocks",
    "the clock of another machine is a day ahead, and takes the lease for expired",
    where="`promote`, `request next`",
    sees="whoever was overtaken, at its next step: that its lease was lost, status 2; nothing of it is written after that",
    broken=Injection("pipelines.lease:check_lease", "skip", always=True),
)
def test_who_is_overtaken_by_a_wrong_clock_is_told_before_it_writes(uri: str) -> None:
    with Holder(uri) as first:
        assert (first.promotion, first.ledger) == ("held 1", "held 1")
        with Holder(uri, clock=DAY) as ahead:
            assert (ahead.promotion, ahead.ledger) == ("held 2", "held 2")
            said = first.ended()
            assert said[0].startswith("PromotionError moving an alias of promoter needs its promotion lock, got one that '")
            assert said[1].startswith("LedgerError working through worker needs its ledger lock, got one that '")
            assert ahead.ended() == ["still held", "still held"]


@row(
    "clocks",
    "the clock is a day behind that of whoever holds the lease",
    where="`promote`, `request next`",
    sees="who holds it until when, status 2",
    broken=Injection("pipelines.lease:_create", "replace", always=True, by="tests.faults.test_leases:always_new"),
)
def test_a_clock_that_is_behind_takes_nothing_away(uri: str) -> None:
    with Holder(uri) as first, Holder(uri, clock=-DAY) as behind:
        assert behind.promotion.startswith("PromotionBusyError one promoter at a time may work on promoter, got")
        assert behind.ledger.startswith("LedgerBusyError one worker at a time may work on worker, got")
        assert first.ended() == ["still held", "still held"]


def always_new(_create: object, *_arguments: object) -> bool:
    """What takes the place of `_create`: whoever asks gets it."""
    return True
