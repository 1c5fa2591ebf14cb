"""Run cases through a reader: count what becomes of them, and keep the smallest that ends in what is no error of ours."""

import hashlib
import importlib
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from grun.errors import GrunError
from tests.fuzz.mutation import mutate
from tests.fuzz.readers import Reader, RefusedStatusError, seeds

__all__ = ["Crash", "Tally", "make_case", "run_cases", "run_guided", "try_case", "warm"]

_TOO_LONG = 20
"""Seconds of this process that no case may take."""

_SHORTENINGS = 300


@dataclass(frozen=True)
class Crash:
    """A bug: what was raised, and where in the repository."""

    kind: str
    place: str

    @classmethod
    def of(cls, error: BaseException) -> "Crash":
        """Name an exception."""
        root = str(Path(__file__).parents[2])
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root) and ".venv" not in f.filename
        ]
        last = frames[-1] if frames else None
        return cls(f"{type(error).__name__}: {str(error)[:100]!r}", f"{Path(last.filename).name}:{last.lineno}" if last else "?")

    def is_like(self, other: "Crash | str") -> bool:
        """Whether both are the same bug, as far as one can tell."""
        return isinstance(other, Crash) and (self.kind.split(":")[0], self.place) == (other.kind.split(":")[0], other.place)


@dataclass
class Tally:
    """What became of the cases of a reader."""

    reader: Reader
    engine: str
    cases: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    crashes: list[tuple[Crash, bytes]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, data: bytes) -> None:
        """Run a case."""
        self.cases += 1
        outcome = try_case(self.reader, data)
        if outcome == "accepted":
            self.accepted += 1
        elif isinstance(outcome, str):
            self.refused[outcome] += 1
        elif not any(outcome.is_like(known) for known, _data in self.crashes):
            self.crashes.append((outcome, _shortened(self.reader, data, outcome)))

    def report(self, folder: Path) -> str:
        """Say it in a few lines; crashes are written to the folder."""
        seconds = time.monotonic() - self.started
        refused = ", ".join(f"{count} {name}" for name, count in self.refused.most_common())
        lines = [
            f"{self.reader.name} ({self.engine}): {self.cases} cases in {seconds:.1f} s ({self.cases / max(seconds, 1e-9):.0f}/s), "
            f"{self.accepted} accepted, refused: {refused or 'none'}"
        ]
        for crash, data in self.crashes:
            path = folder / self.reader.name / hashlib.sha256(data).hexdigest()[:12]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            lines.append(f"  CRASH {crash.kind} at {crash.place}: {len(data)} bytes in {path}")
        return "\n".join(lines)


@contextmanager
def _deadline() -> Iterator[None]:
    """Interrupt what takes too long."""

    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"longer than {_TOO_LONG} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _TOO_LONG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def try_case(reader: Reader, data: bytes) -> str | Crash:
    """Feed a case to a reader; return "accepted", the name of the refusal, or the bug."""
    try:
        with _deadline():
            reader.read(data)
    except RefusedStatusError as status:
        return f"HTTP {status}"
    except GrunError as error:
        return (
            type(error).__name__
            if _is_clear(str(error))
            else Crash(f"unclear message: {str(error)[:100]!r}", type(error).__name__)
        )
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return Crash.of(error)
    return "accepted"


def _is_clear(message: str) -> bool:
    """Whether a message can be read: in a few lines of text, and not the input over again."""
    return 20 < len(message) < 6000


def warm(reader: Reader) -> None:
    """Import what a reader needs, which may take longer than any case."""
    with suppress(Exception):  # what it raises counts when the seed's turn comes
        reader.read(seeds(reader.name)[0])


def make_case(reader: Reader, seed: int, number: int) -> bytes:
    """The case of a number: the same for the same seed, on every machine."""
    return mutate(seeds(reader.name), reader.format, Random(f"{seed}/{reader.name}/{number}"))


def run_cases(reader: Reader, count: int, seed: int) -> Tally:
    """Run seeds, then cases by their number, without looking at coverage."""
    warm(reader)
    tally, corpus = Tally(reader, "own mutator"), seeds(reader.name)
    for number in range(count):
        random = Random(f"{seed}/{reader.name}/{number}")
        tally.add(corpus[number] if number < len(corpus) else mutate(corpus, reader.format, random))
    return tally


def _shortened(reader: Reader, data: bytes, crash: Crash) -> bytes:
    """Leave out what a bug does not need."""
    left, size = _SHORTENINGS, max(1, len(data) // 2)

    def still(shorter: bytes) -> bool:
        return crash.is_like(try_case(reader, shorter))

    while size and left:
        place, cut = 0, False
        while place < len(data) and left:
            left -= 1
            shorter = data[:place] + data[place + size :]
            if still(shorter):
                data, cut = shorter, True
            else:
                place += size
        size = size if cut and size > 1 else size // 2
    return data


def run_guided(reader: Reader, count: int, seed: int, folder: Path, done: Callable[[Tally], None]) -> None:
    """Run cases with atheris, which keeps those that reach new code of ours; ends the process.

    Args:
        folder: corpus that it keeps them in.
        done: told at the end.
    """
    atheris: Any = importlib.import_module("atheris")  # no wheel for every Python

    tally, corpus = Tally(reader, "atheris"), seeds(reader.name)

    def one(data: bytes) -> None:
        tally.add(data)
        if tally.cases >= count:
            done(tally)

    def mutated(data: bytes, max_size: int, number: int) -> bytes:
        random = Random(number)
        case = atheris.Mutate(data, max_size) if random.random() < 0.3 else mutate([data, *corpus], reader.format, random)
        return bytes(case[:max_size])

    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(corpus):
        (folder / f"seed-{number:02d}").write_bytes(data)
    longest = 2 * max(map(len, corpus)) + 4096
    arguments = [
        sys.argv[0],
        str(folder),
        f"-seed={seed + 1}",
        f"-max_len={longest}",
        "-len_control=0",
        "-verbosity=0",
        "-timeout=60",
    ]
    atheris.Setup(arguments, one, custom_mutator=mutated)
    atheris.Fuzz()
