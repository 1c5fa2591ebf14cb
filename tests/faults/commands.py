"""A command of ours as a user runs it, in processes of its own: how it ended, what it said, and whether anything of it is left."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.faults.injection import Injection, environment
from tests.pipelines.processes import Ended

__all__ = ["Started", "finished", "running"]

_ROOT = Path(__file__).parents[2]
_MARK = "FAULT_TEST_COMMAND"
_SECONDS = 900
_ASKED = 120
"""Times that a command is interrupted before it counts as one that does not answer."""


class Started:
    """A command that runs, with all processes that it has started, Ray's among them."""

    def __init__(self, process: subprocess.Popen[str], mark: str) -> None:
        self.process = process
        self.mark = mark
        self.said: list[str] = []

    def until(self, start: str) -> str:
        """Read what it says on standard error up to a line that starts so, and return that line."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith(start):
                return line
        raise AssertionError(f"it ended without saying {start!r}: {''.join(self.said)}")

    def ended(self, seconds: float = _SECONDS) -> Ended:
        """Wait for its end."""
        out, rest = self.process.communicate(timeout=seconds)
        return Ended(self.process.returncode, out, "".join(self.said) + rest)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those of its processes that live, itself included, whose command line has all the words."""
        return [process for process in psutil.process_iter() if self._is_mine(process) and _has(process, words)]

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ctrl-C, as a terminal sends it, or another signal: to every process of the command's group."""
        os.killpg(self.process.pid, number)

    def interrupted_until_it_ends(self) -> Ended:
        """Ctrl-C again and again, as somebody does who is not answered."""
        for _ in range(_ASKED):
            self.interrupt()
            try:  # two signals that arrive at once are one
                return self.ended(seconds=1)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError(f"it does not end: {''.join(self.said)}")

    def survivors(self, seconds: float = 60) -> list[str]:
        """Command lines of what still lives so long after it has ended: orphans."""
        _gone, alive = psutil.wait_procs(self.processes(), timeout=seconds)
        return [" ".join(process.cmdline()) for process in alive if process.is_running()]

    def kill_all(self) -> None:
        """All its processes at once, as when the machine loses power."""
        while found := self.processes():
            for process in found:  # nobody may see another one die
                _signal(process, signal.SIGSTOP)
            for process in found:
                _signal(process, signal.SIGKILL)
            psutil.wait_procs(found, timeout=_SECONDS)

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == self.mark
        except psutil.Error:
            return False


def _has(process: psutil.Process, words: Sequence[str]) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return all(word in line for word in words)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


@contextmanager
def running(verb: str, *options: str, injections: Iterable[Injection] = (), **variables: str) -> Iterator[Started]:
    """Start `pipelines/<verb>.py`; what is left of it at the end of the context is killed."""
    mark = uuid.uuid4().hex
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    above = {**environment(injections), _MARK: mark, "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.Popen(
        [sys.executable, f"pipelines/{verb}.py", *options],
        cwd=_ROOT,
        env={**inherited, **above},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a shell gives to every command
        # of a test that was itself started in the background, which would ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no thread runs beside it
    )
    started = Started(process, mark)
    try:
        yield started
    finally:
        started.kill_all()
        process.communicate()


def finished(verb: str, *options: str, injections: Iterable[Injection] = (), **variables: str) -> Ended:
    """Run a command to its end; nothing of it may be left."""
    with running(verb, *options, injections=injections, **variables) as started:
        ended = started.ended()
        assert started.survivors() == []
    return ended
