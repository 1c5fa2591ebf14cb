"""The long run: `python -m tests.fuzz [READER ...] [--cases 100000] [--seed 0] [--engine auto|atheris|own] [--keep FOLDER]`.

With atheris installed, cases are guided by coverage of grun and pipelines, each reader in a process of its own; without it, they come
from our own mutator. Ends with 1 where a crash was found; the smallest input of each is written below the folder.
"""

import argparse
import importlib
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_MEMORY = 16 * 2**30
"""Address space that a run may take: what asks for more is a bomb."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Feed readers with hostile input.")
    parser.add_argument("reader", nargs="*", help="which readers; all of them if none")
    parser.add_argument("--cases", type=int, default=100_000, help="cases for each reader")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other cases")
    parser.add_argument(
        "--engine", choices=("auto", "atheris", "own"), default="auto", help="auto takes atheris where it is installed"
    )
    parser.add_argument("--keep", type=Path, default=Path("outputs/fuzz"), help="folder for inputs that crash")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _guided(arguments: argparse.Namespace) -> None:
    """Run one reader with atheris in this process, which it ends."""
    atheris: Any = importlib.import_module("atheris")  # no wheel for every Python

    with atheris.instrument_imports(include=["grun", "pipelines"]):
        from tests.fuzz.readers import READERS
        from tests.fuzz.run import Tally, run_guided, warm

        [name] = arguments.reader
        warm(READERS[name])  # what it imports is instrumented too

    def done(tally: Tally) -> None:
        print(tally.report(arguments.keep), flush=True)
        os._exit(1 if tally.crashes else 0)  # libFuzzer has no other way to end early and well

    with tempfile.TemporaryDirectory() as folder:
        run_guided(READERS[name], arguments.cases, arguments.seed, Path(folder), done)


def main() -> int:
    """Run it."""
    arguments = _arguments()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    has_atheris = importlib.util.find_spec("atheris") is not None
    if arguments.in_this_process:
        _guided(arguments)
    from tests.fuzz.readers import READERS
    from tests.fuzz.run import run_cases

    if unknown := [name for name in arguments.reader if name not in READERS]:
        print(f"readers must be among {', '.join(READERS)}, got {', '.join(unknown)}; see tests/fuzz/readers.py", file=sys.stderr)
        return 2
    failed = False
    for name in arguments.reader or READERS:
        if arguments.engine == "atheris" or (arguments.engine == "auto" and has_atheris):
            own = [name, "--cases", str(arguments.cases), "--seed", str(arguments.seed), "--keep", str(arguments.keep)]
            failed |= subprocess.run([sys.executable, "-m", "tests.fuzz", *own, "--in-this-process"], check=False).returncode != 0
        else:
            tally = run_cases(READERS[name], arguments.cases, arguments.seed)
            print(tally.report(arguments.keep), flush=True)
            failed |= bool(tally.crashes)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
