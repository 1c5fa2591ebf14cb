"""Two commands of one name at the same time: the second is refused at once, and told who the first is."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.holding import holding
from tests.faults.commands import finished, running
from tests.faults.holding_still import at, reached
from tests.faults.injection import Injection
from tests.faults.table import row

pytestmark = pytest.mark.slow  # commands start


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
