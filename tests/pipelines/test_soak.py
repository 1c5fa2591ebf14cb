"""The soak: a command that is killed is given again until it ends well, and what a round with kills leaves is what one without leaves."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grun.errors import TrainingError
from pipelines.benchmarks.soak_commands import Disturber, Runner

ONCE = "import pathlib, sys, time; path = pathlib.Path(sys.argv[1]); path.exists() or (path.touch(), time.sleep(600))"
"""A program that hangs the first time, and ends well the second time."""


class Killing(Disturber):
    """Kills the whole command as soon as it has begun."""

    def __init__(self, runner: Runner, begun: Path) -> None:
        super().__init__(0, runner.mark, {})
        self.begun = begun

    def disturbing(self, kind: str, pid: int, seconds: float) -> Callable[[], bool]:
        was_there = self.begun.exists()
        while not self.begun.exists():
            continue
        if not was_there:
            self._kill("whole command at once", pid)
        return lambda: not was_there


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "commands.log", "test", 600)


def test_a_command_that_was_killed_is_given_again(runner: Runner, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    runner.took["once"] = 1.0
    runner.run("once", "-c", ONCE, str(begun), disturber=Killing(runner, begun))
    assert runner.again == 1


def test_a_command_that_ends_badly_by_itself_is_not(runner: Runner) -> None:
    with pytest.raises(TrainingError, match=r"got status 3 of `-c import sys; sys\.exit\(3\)`"):
        runner.run("bad", "-c", "import sys; sys.exit(3)")
    assert runner.again == 0


def test_what_is_left_of_a_command_is_found_and_ended(runner: Runner) -> None:
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    runner.run("parent", "-c", child)
    [orphan] = runner.left(seconds=0.1)
    assert orphan.exe() == str(Path(sys.executable).resolve())
    runner.end_all()
    assert runner.left(seconds=0.1) == []


@pytest.mark.slow  # a round of commands left alone, and one with kills
def test_a_round_with_kills_leaves_what_one_without_leaves(run_benchmark: Callable[..., dict[str, Any]]) -> None:
    rows = run_benchmark("soak", "--minutes", "0", "--seed", "1")
    values = {name: row["value"] for name, row in rows.items()}
    assert values["soak.rounds"] == values["soak.rounds_as_the_first"] == 1
    assert sum(value for name, value in values.items() if name.startswith("soak.kills.")) >= 1
    assert values["soak.orphans"] == 0
    assert values["soak.failed_requests"] == 0 < values["soak.answers"]
    assert values["soak.stacks_that_answered"] == 3, "both requests, the second alone, and both in the other order"
