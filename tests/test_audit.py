"""The audit of dependencies: what differs from the lock is named, and what was not looked up is said."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import audit
from tests.audit import NotLookedUpError, apart_from_the_lock, compare, look_up, main, read_lock

LOCK = 'a-b==1.0\n    # via c\nC_d[x]==2.0 ; python_version >= "3.8"\nold==1 ; python_version < "3"\n'


def test_a_lock_is_read_with_its_names_in_one_spelling() -> None:
    assert read_lock(LOCK) == {"a-b": "1.0", "c-d": "2.0"}


@pytest.mark.parametrize("line", ["a>=1", "a", "a @ https://example.org/a.whl", "-e ."])
def test_a_lock_that_pins_no_version_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"must pin a version, .* in line 2"):
        read_lock(f"a==1\n{line}\n")


def test_every_difference_is_named() -> None:
    installed = {"same": "1", "other": "2", "extra": "3", "torch": "4"}
    assert compare({"same": "1", "other": "1", "gone": "1"}, installed, {"torch"}) == [
        "extra 3 is installed and not in the lock: add it to pyproject.toml and lock again, or uninstall it",
        "gone 1 is in the lock and not installed: run `make setup`",
        "other must be 1 by the lock, got 2: run `make setup`, or lock again",
    ]


def test_torch_may_bring_what_it_needs_and_the_project_may_not() -> None:
    apart = apart_from_the_lock()
    assert {"torch", "sympy", "grun-pipelines"} <= apart
    assert "mlflow" not in apart


def answer(monkeypatch: pytest.MonkeyPatch, code: int, out: str = "", err: str = "") -> None:
    monkeypatch.setattr(audit, "find_spec", lambda _name: object())
    done: Any = subprocess.CompletedProcess([], code, out, err)
    monkeypatch.setattr(subprocess, "run", lambda *_arguments, **_options: done)


VULNERABLE = {"name": "a", "version": "1", "vulns": [{"id": "GHSA-0", "fix_versions": ["2"], "aliases": [], "description": "d"}]}
SOUND = {"name": "b", "version": "1", "vulns": []}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


def test_what_pip_audit_finds_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, 1, json.dumps({"dependencies": [VULNERABLE, SOUND, SKIPPED]}))
    assert look_up(tmp_path) == ["a 1: GHSA-0, mended in 2"]
    assert main() == 1
    assert "GHSA-0" in capsys.readouterr().out


def test_nothing_found_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, 0, json.dumps({"dependencies": [SOUND]}), "No known vulnerabilities found\n")
    assert look_up(tmp_path) == []


def test_what_was_skipped_is_no_clean_bill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, 0, json.dumps({"dependencies": [SOUND, SKIPPED]}), "No known vulnerabilities found\n")
    with pytest.raises(NotLookedUpError, match=r"knew nothing of 1 of 2 distributions \(c, "):
        look_up(tmp_path)


def test_a_service_that_cannot_be_reached_is_no_clean_bill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, 1, "", "ERROR:pip_audit._cli:Could not connect to the service\n")
    monkeypatch.setattr(audit, "compare", lambda *_arguments: [])
    assert main() == 0
    said = capsys.readouterr().out
    assert "known vulnerabilities were NOT looked up: pip-audit ended with 1: ERROR:pip_audit._cli:Could not connect" in said
    assert "no vulnerability" not in said


def test_without_pip_audit_nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(audit, "find_spec", lambda _name: None)
    with pytest.raises(NotLookedUpError, match="pip-audit is not installed"):
        look_up(tmp_path)


def test_a_difference_fails_the_audit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "find_spec", lambda _name: None)
    (tmp_path / "lock").write_text("no-such-thing==1\n", encoding="utf-8")
    assert main(tmp_path / "lock") == 1
    assert "no-such-thing 1 is in the lock and not installed" in capsys.readouterr().out
