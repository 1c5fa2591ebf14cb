"""Prove every row of the fault table able to fail: run its test with the safeguard broken, and demand that it does.

python -m tests.faults.broken [WORD ...]      rows whose test's name or fault has one of the words; none: all
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.injection import environment
from tests.faults.table import Row, rows

_ROOT = Path(__file__).parents[2]
_FAILED = 1
"""Status of pytest where tests ran, and one failed."""


def fails(one: Row) -> tuple[bool, str]:
    """Whether the row's test fails without its safeguard, and the last lines of what it said."""
    with tempfile.TemporaryDirectory() as folder:
        # a safeguard may be broken "once" for all processes: in a file that is this run's own
        guards = [guard.in_folder(folder) for guard in one.broken]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow", one.node_id]
        ended = subprocess.run(
            command, cwd=_ROOT, env={**os.environ, **environment(guards)}, capture_output=True, text=True, check=False
        )
    return ended.returncode == _FAILED, ended.stdout[-3000:]


def main(words: list[str]) -> int:
    """Run them all and say of each how it went; the status is 1 where one passed that must not."""
    chosen = [one for one in rows() if not words or any(word in f"{one.node_id} {one.fault}" for word in words)]
    passed = []
    for number, one in enumerate(chosen, 1):
        started = time.monotonic()
        failed, said = fails(one)
        took = f"{time.monotonic() - started:.0f} s"
        print(f"{number}/{len(chosen)} {'fails, as it must' if failed else 'PASSES'}: {one.node_id} ({took})", flush=True)
        if not failed:
            passed.append(one)
            print(said)
    print(f"{len(chosen) - len(passed)} of {len(chosen)} rows fail without their safeguard")
    return 1 if passed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
