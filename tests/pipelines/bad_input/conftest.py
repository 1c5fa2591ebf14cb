"""Verbs as processes of their own would run them, on input that a test may spoil; nothing may be left behind."""

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import pytest
import ray

from pipelines.running import run_command
from tests.pipelines.processes import Ended

VERBS = ("prepare", "train", "sweep", "evaluate", "promote")


def question(who: str, number: int) -> dict[str, str]:
    return {"question": f"Who is {who} {number}?", "answer": f"{who} {number} paints."}


FORGET = [question("Ilva", n) for n in range(3)]
RETAIN = [question("Bram", n) for n in range(40)]


Verb = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Nothing of ours in the environment; what a verb sets there is gone afterwards."""
    with patch.dict(os.environ):
        for variable in list(os.environ):
            if variable.upper().startswith("GRUN_") or variable in ("FORCE_COLOR", "RAY_ADDRESS"):
                del os.environ[variable]
        yield


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs no cluster must be found before one is started."""

    def refuse(*_args: object, **_options: object) -> NoReturn:
        pytest.fail("a cluster was started before the input was checked")

    monkeypatch.setattr(ray, "init", refuse)


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, and the folders themselves."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Run a verb as its own process would, into `tmp_path`; nothing below it may change."""
    monkeypatch.setattr("signal.signal", lambda *_: None)  # `run_command` owns its process, and here it does not

    def run(verb: str, *arguments: object) -> Ended:
        before = tree(tmp_path)
        output = () if "--output" in arguments else ("--output", tmp_path / "output")
        main = importlib.import_module(f"pipelines.{verb}").main
        with pytest.raises(SystemExit) as stop:
            run_command(partial(main, [str(argument) for argument in (*arguments, *output)]))
        assert tree(tmp_path) == before
        return Ended(stop.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def base(base_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may damage."""
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., list[object]]:
    """Write a data folder and return the options that name it."""

    def write(forget: Iterable[object] = FORGET, retain: Iterable[object] = RETAIN) -> list[object]:
        folder = tmp_path / "data"
        folder.mkdir()
        for name, lines in {"forget": forget, "retain": retain}.items():
            texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
            (folder / f"{name}.jsonl").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return ["--data.kind", "jsonl", "--data.path", folder]

    return write
