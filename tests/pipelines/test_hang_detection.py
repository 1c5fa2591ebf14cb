"""Who notices what hangs, without anything that hangs: a clock that is set, a look that is called."""

from pathlib import Path

import pytest

from pipelines import pulse, watchdog
from pipelines.pulse import PulseWatch
from pipelines.watchdog import Watchdog


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pids of tasks that were killed."""
    pids: list[int] = []
    monkeypatch.setattr(PulseWatch, "_kill", lambda _watch, found: pids.append(found.pid))
    monkeypatch.setattr(pulse, "say", lambda text: None)
    return pids


def beat(path: Path, count: int, pid: int = 7) -> None:
    path.write_text(pulse._Pulse(node="n", pid=pid, started=1.5, beat=count).model_dump_json(), encoding="utf-8")


def test_only_a_task_that_has_begun_and_fell_silent_is_killed(tmp_path: Path, killed: list[int]) -> None:
    now = 0.0
    silent, lively, waiting = (tmp_path / f"{name}.pulse" for name in ("silent", "lively", "waiting"))
    watch = PulseWatch([silent, lively, waiting], 10, "scoring", clock=lambda: now)
    beat(silent, 0)
    for second in range(30):
        now = float(second)
        beat(lively, second, pid=8)
        watch()
        assert killed == [7] * (second // 11)  # once, and again if it is still there
    assert not waiting.exists()
    silent.unlink()  # it is done
    now = 100.0
    beat(lively, 100, pid=8)
    watch()
    assert len(killed) == 2


@pytest.fixture
def dog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watchdog:
    monkeypatch.setattr(watchdog, "say", lambda text: None)

    def end() -> None:
        raise SystemExit

    monkeypatch.setattr(watchdog, "end_process", end)
    return Watchdog("worker 0", 3, tmp_path)


def test_a_worker_ends_when_no_step_is_finished_and_keeps_where_it_stood(dog: Watchdog, tmp_path: Path) -> None:
    for _step in range(3):
        for _second in range(3):
            dog._look()
        dog(None)
    for _second in range(3):
        dog._look()
    with pytest.raises(SystemExit):
        dog._look()
    [stacks] = tmp_path.iterdir()
    assert "test_a_worker_ends_when_no_step_is_finished" in stacks.read_text(encoding="utf-8")


def test_time_that_others_take_is_not_counted(dog: Watchdog) -> None:
    with dog.paused():
        for _second in range(100):
            dog._look()
    for _second in range(3):
        dog._look()
