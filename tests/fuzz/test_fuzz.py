"""Hostile input: hypothesis draws cases of every reader that takes bytes from outside; the long run is `python -m tests.fuzz`."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grun.errors import DataError
from tests.fuzz.mutation import mutate
from tests.fuzz.readers import CORPUS, READERS, Reader, good, seeds
from tests.fuzz.run import Crash, run_cases, try_case, warm

CASES_IN_CI = 2000
"""Of each reader, in the slow tests; the long run has 100,000."""


def test_every_reader_has_seeds_and_every_seed_a_reader() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_seeds_are_taken_where_they_are_in_order_and_refused_where_they_are_not(name: str) -> None:
    for path in (CORPUS / name).iterdir():
        outcome = try_case(READERS[name], path.read_bytes())
        assert (outcome == "accepted") == path.name.startswith("good"), (path.name, outcome)
        assert isinstance(outcome, str)


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_reader_gets_it_takes_or_refuses(name: str) -> None:
    reader, corpus = READERS[name], seeds(name)
    warm(reader)

    @settings(max_examples=200)
    @given(case=st.one_of(st.binary(max_size=200), st.integers(0, 2**32).map(lambda n: mutate(corpus, reader.format, Random(n)))))
    def holds(case: bytes) -> None:
        assert isinstance(try_case(reader, case), str)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_more_cases_of_every_reader(name: str) -> None:
    assert run_cases(READERS[name], CASES_IN_CI, seed=1).crashes == []


def test_cases_are_the_same_for_the_same_seed() -> None:
    first, again, other = (
        [mutate(seeds("records"), "jsonl", Random(f"{seed}/{number}")) for number in range(20)] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_crash_is_found_shortened_and_told(tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        if b"Ilva" in data:
            raise KeyError("a bug")
        raise DataError("a case must be refused in words, got none; say some")

    tally = run_cases(Reader("records", "jsonl", read), 50, seed=0)
    [(crash, data)] = tally.crashes
    assert data == b"Ilva"
    assert crash.kind.startswith("KeyError")
    assert "CRASH KeyError" in tally.report(tmp_path)
    assert [path.read_bytes() for path in (tmp_path / "records").iterdir()] == [b"Ilva"]


def test_a_message_that_repeats_its_input_is_a_crash() -> None:
    def read(data: bytes) -> None:
        raise DataError(f"{data!r}" * 100)

    assert isinstance(try_case(Reader("records", "jsonl", read), good("records")), Crash)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: cases are not guided by coverage"
)
def test_atheris_guides_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "records", "--cases", "500", "--engine", "atheris", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "records (atheris): 500 cases" in done.stdout
