"""The injector itself: what it changes, when, and that nothing else changes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.injection import Injection, environment


def said(code: str, *injections: Injection, **variables: str) -> tuple[int, str]:
    """How an interpreter with these injections ends, and what it prints."""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment(injections, variables)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


NEAR = "from grun.errors import near_miss\nfor word in 'alph', 'bet', 'gamm': print(near_miss(word, ['alpha', 'beta', 'gamma']))"
WHERE = "grun.errors:near_miss"


def loud(function: object, word: str, known: list[str]) -> str:
    """What takes the place of `near_miss` below."""
    return f"instead of {word}"


def test_nothing_changes_without_an_injection() -> None:
    assert said(NEAR) == (0, " (did you mean `alpha`?)\n (did you mean `beta`?)\n (did you mean `gamma`?)\n")


@pytest.mark.parametrize(
    ("injection", "lines"),
    [
        (Injection(WHERE, "skip", nth=2), [" (did you mean `alpha`?)", "None", " (did you mean `gamma`?)"]),
        (Injection(WHERE, "skip", nth=2, always=True), [" (did you mean `alpha`?)", "None", "None"]),
        (
            Injection(WHERE, "skip", always=True, rank=1),
            [" (did you mean `alpha`?)", " (did you mean `beta`?)", " (did you mean `gamma`?)"],
        ),
        (
            Injection(WHERE, "replace", nth=3, by="tests.faults.test_injection:loud"),
            [" (did you mean `alpha`?)", " (did you mean `beta`?)", "instead of gamm"],
        ),
    ],
)
def test_the_calls_that_are_named_change(injection: Injection, lines: list[str]) -> None:
    status, out = said(NEAR, injection, RANK="0")
    assert (status, out.splitlines()) == (0, lines)


def test_a_process_dies_once_and_its_successor_lives(tmp_path: Path) -> None:
    deadly = Injection(WHERE, nth=2, after=True, once=str(tmp_path / "died"))
    assert said(NEAR, deadly)[0] == -signal.SIGKILL
    assert said(NEAR, deadly)[0] == 0


def test_a_place_fails_when_it_is_armed_and_only_once(tmp_path: Path) -> None:
    armed = Injection(WHERE, "skip", always=True, armed=str(tmp_path / "armed"))
    assert said(NEAR, armed)[1].count("None") == 0
    (tmp_path / "armed").touch()
    assert said(NEAR, armed)[1].splitlines() == ["None", " (did you mean `beta`?)", " (did you mean `gamma`?)"]


def test_a_full_disk_is_the_error_that_the_system_gives() -> None:
    status, out = said(NEAR, Injection(WHERE, "enospc"))
    assert status == 1
    assert "OSError: [Errno 28] No space left on device" in out


def test_methods_of_every_kind_can_fail() -> None:
    code = "from grun.config import Recipe\nprint(Recipe.parse({}))"
    assert said(code, Injection("grun.config:Recipe.parse", "skip")) == (0, "None\n")


def test_what_a_test_runs_under_reaches_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = environment([Injection("a:b")])
    monkeypatch.setenv("FAULT_INJECTIONS", outer["FAULT_INJECTIONS"])
    inner = json.loads(environment([Injection("c:d")])["FAULT_INJECTIONS"])
    assert [one["where"] for one in inner] == ["a:b", "c:d"]
