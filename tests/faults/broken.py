"""Prove every row of the fault table able to fail: run its test with the safeguard broken, and demand that it does.

python -m tests.faults.broken [WORD ...]      rows whose test's name or fault has one of the words; none: all

Rows of a file that rest on one safeguard are run together, as they often share what takes long.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tests.faults.injection import environment
from tests.faults.table import Row, rows

_ROOT = Path(__file__).parents[2]
_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/faults/.+?)(?: - .*)?$", re.MULTILINE)
"""Tests that did not pass, in pytest's summary; an ERROR is a failure of what a test stands on."""


@dataclass(frozen=True)
class Together:
    """Rows of one file whose safeguard is the same."""

    rows: Sequence[Row]

    @property
    def tests(self) -> list[str]:
        """Their tests, each once."""
        return list(dict.fromkeys(one.node_id for one in self.rows))

    def passing(self) -> tuple[list[str], str]:
        """Tests that pass without the safeguard, which none must; and the last lines of what they said."""
        with tempfile.TemporaryDirectory() as folder:
            # a safeguard may be broken "once" for all processes: in a file that is this run's own
            guards = [guard.in_folder(folder) for guard in self.rows[0].broken]
            options = ("-q", "-rfE", "-p", "no:cacheprovider", "-m", "slow or not slow")
            command = [sys.executable, "-m", "pytest", *options, *self.tests]
            ended = subprocess.run(
                command, cwd=_ROOT, env={**os.environ, **environment(guards)}, capture_output=True, text=True, check=False
            )
        failed = _FAILED.findall(ended.stdout)
        return [test for test in self.tests if not _is_among(test, failed)], ended.stdout[-3000:]


def _is_among(test: str, failed: Iterable[str]) -> bool:
    """Whether a test failed, or one of its cases where the row stands for all of them."""
    return any(one == test or one.startswith(f"{test}[") for one in failed)


def together(chosen: Sequence[Row]) -> list[Together]:
    """Rows in groups that can be run with one safeguard broken."""

    def shared(one: Row) -> tuple[str, str]:
        return one.file, repr(one.broken)

    return [Together(list(group)) for _shared, group in groupby(sorted(chosen, key=shared), shared)]


def main(words: list[str]) -> int:
    """Run them all and say of each how it went; the status is 1 where one passed that must not."""
    chosen = [one for one in rows() if not words or any(word in f"{one.node_id} {one.fault}" for word in words)]
    groups = together(chosen)
    ran = {test for group in groups for test in group.tests}
    stayed: list[str] = []
    for number, group in enumerate(groups, 1):
        started = time.monotonic()
        passing, said = group.passing()
        for test in group.tests:
            print(f"{number}/{len(groups)} {'PASSES' if test in passing else 'fails, as it must'}: {test}", flush=True)
        print(f"{number}/{len(groups)} took {time.monotonic() - started:.0f} s", flush=True)
        if passing:
            stayed += passing
            print(said)
    print(f"{len(ran) - len(stayed)} of {len(ran)} tests fail without their safeguard")
    return 1 if stayed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
