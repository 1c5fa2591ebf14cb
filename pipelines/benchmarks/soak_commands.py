"""Commands of a soak in processes of their own: run to the end, and run again where a kill took them."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from grun.errors import TrainingError
from pipelines.benchmarks.soak_watch import MARK, is_of

__all__ = ["VICTIMS", "Disturber", "Kill", "Runner"]

VICTIMS = ("training worker", "cluster", "command", "whole command at once", "MLflow server")
"""What is killed: a worker of Ray Train; the cluster's own daemon; the command's first process; all its processes; the tracking server."""

_ATTEMPTS = 8
_UNDISTURBED_FROM = 3
"""A command that was disturbed so often is left alone, as it has to end some time."""

_END_SECONDS = 0.2
"""Between looks at what still lives."""

_SHARE = 0.75
"""Of commands that are disturbed."""


@dataclass(frozen=True)
class Kill:
    """One kill that happened."""

    seconds: float
    """Since the soak began."""
    victim: str
    command: str


@dataclass
class Runner:
    """Runs commands of one soak."""

    log: Path
    """Where they write what they say."""
    mark: str
    limit: float
    """Seconds after which a command counts as hanging."""
    took: dict[str, float] = field(default_factory=dict)
    """Seconds that each kind of command took when nothing disturbed it."""
    again: int = 0
    """Commands that were run again after a kill."""

    def run(self, kind: str, *arguments: str, disturber: "Disturber | None" = None) -> None:
        """Run a command until it has ended well.

        Raises:
            TrainingError: it did not, although it was left alone; or it hung.
        """
        for attempt in range(_ATTEMPTS):
            started = time.monotonic()
            process = self._start(*arguments)
            kill = None
            if disturber is not None and attempt < _UNDISTURBED_FROM:
                kill = disturber.disturbing(kind, process.pid, self.took[kind])
            try:
                status = process.wait(self.limit)
            except subprocess.TimeoutExpired:
                self.end_all()
                raise TrainingError(
                    f"a command must end within {self.limit:g} s, got `{' '.join(arguments)}` still running; see {self.log}"
                ) from None
            was_killed = kill is not None and kill()
            if status == 0:
                if disturber is None:
                    self.took[kind] = time.monotonic() - started
                return
            if not was_killed:
                break
            self.again += 1
        raise TrainingError(
            f"a command must end well once it is left alone, got status {status} of `{' '.join(arguments)}`; see {self.log}"
        )

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(arguments)}\n".encode())
            log.flush()
            return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, env={**os.environ, MARK: self.mark})

    def left(self, seconds: float) -> list[psutil.Process]:
        """What still lives of all commands so long after they have ended: orphans."""
        found = [process for process in psutil.process_iter() if is_of(process, self.mark)]
        _gone, alive = psutil.wait_procs(found, timeout=seconds)
        return list(alive)

    def end_all(self) -> None:
        """Kill every process of every command."""
        while found := [process for process in psutil.process_iter() if is_of(process, self.mark)]:
            kill_together(found)
            time.sleep(_END_SECONDS)


def kill_together(processes: Sequence[psutil.Process]) -> None:
    """Kill processes so that none sees another one die.

    Nobody waits for them here: of the command itself that would take its status from whoever does.
    """
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


class Disturber:
    """Kills something at a random moment of most commands; the same seed draws the same victims and moments.

    Args:
        servers: what to call to kill a server that the commands use, by the name of the victim.
    """

    def __init__(self, seed: int, mark: str, servers: Mapping[str, Callable[[], None]]) -> None:
        self.random = random.Random(seed)
        self.mark = mark
        self.servers = servers
        self.kills: list[Kill] = []
        self.began = time.monotonic()

    def disturbing(self, kind: str, pid: int, seconds: float) -> Callable[[], bool]:
        """Kill something while a command runs that takes so long by itself; returns what ends that, and says whether it happened."""
        is_wanted, victim = self.random.random() < _SHARE, self.random.choice(VICTIMS)
        moment, done, happened = self.random.uniform(0.05, 0.8) * seconds, threading.Event(), threading.Event()

        def wait() -> None:
            if not done.wait(moment):
                happened.set()
                killed = self._kill(victim, pid)
                self.kills.append(Kill(round(time.monotonic() - self.began, 1), killed, kind))

        if not is_wanted:
            return happened.is_set
        thread = threading.Thread(target=wait, name="disturber", daemon=True)
        thread.start()

        def end() -> bool:
            done.set()
            thread.join()
            return happened.is_set()

        return end

    def _kill(self, victim: str, pid: int) -> str:
        """Kill a victim, or the command where there is none of its kind just now; returns what it was."""
        if victim in self.servers:
            self.servers[victim]()
            return victim
        words = {"training worker": "RayTrainWorker", "cluster": "/raylet "}
        everything = [process for process in psutil.process_iter() if is_of(process, self.mark)]
        if victim == "whole command at once":
            kill_together(everything)
            return victim
        found = [process for process in everything if victim in words and words[victim] in _line(process)]
        if found:
            kill_together([self.random.choice(sorted(found, key=lambda process: process.pid))])
            return victim
        kill_together([process for process in everything if process.pid == pid])
        return "command"


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
