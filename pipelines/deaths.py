"""Processes of the cluster that died, in words.

Of workers, why they start again: read off what Ray knows of the one that failed, in the run's controller. Of any other process, that the
command cannot go on without it.
"""

import re
from collections.abc import Mapping
from typing import Any

from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2.api.callback import UserCallback

from grun.errors import ClusterError
from pipelines.notices import has_ended_itself, say
from pipelines.shortage import REMEDY_OF_WORKERS

__all__ = ["TellOfDeaths", "cause_of_death", "is_by_memory", "lost_process"]

_LOST_PEER = re.compile(
    r"connection (was )?(closed|reset|aborted)|broken pipe|remote process exited|socket timeout", re.IGNORECASE
)


class TellOfDeaths(UserCallback):
    """Tells the driver of every failure after which the workers start again; of the last one, an exception does.

    Args:
        what: the run, for people.
        max_failures: after how many failures workers are started again; -1 for ever.
        hang_seconds: how long Ray waits for a worker's answer.
    """

    def __init__(self, what: str, max_failures: int, hang_seconds: float) -> None:
        self.what = what
        self.max_failures = max_failures
        self.hang_seconds = hang_seconds
        self.failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002 - named by Ray
        """Called once for each failure of the group."""
        self.failures += 1
        is_last = 0 <= self.max_failures < self.failures
        if not is_last and not any(map(_has_ended_itself, worker_exceptions.values())):
            say(
                f"{self.what}: {cause_of_death(worker_exceptions, self.hang_seconds)}; the workers start again from the last checkpoint"
            )


def cause_of_death(failures: Mapping[int, BaseException], hang_seconds: float) -> str:
    """What happened to the worker that failed first, as far as it can be told: the others fail because of it."""
    rank, error = min(failures.items(), key=lambda item: (_order(item[1]), item[0]))
    worker = f"worker {rank}"
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return f"{worker} did not answer for {hang_seconds:g} s and is replaced"
    if is_by_memory(error):
        return f"{worker} was killed by Ray, as the memory of its node ran out ({REMEDY_OF_WORKERS})"
    if _has_ended_itself(error):
        return f"{worker} ended itself, for the reason above"
    if "node has died" in str(error) or "node was terminated" in str(error):
        return f"{worker} was lost with its node"
    if isinstance(error, WorkerHealthCheckFailedError):
        return f"{worker} was killed, as by the kernel when memory runs out (then {REMEDY_OF_WORKERS})"
    if _LOST_PEER.search(str(error)):
        return f"{worker} lost the connection to another one, which was killed or crashed"
    last = [line for line in str(error).splitlines() if line.strip()]
    return f"{worker} failed with {type(error).__name__}: {last[-1].strip()[:300] if last else ''}"


def _has_ended_itself(error: BaseException) -> bool:
    return has_ended_itself(getattr(getattr(error, "health_check_failure", None), "actor_id", None))


def is_by_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor killed a process."""
    failure = getattr(error, "health_check_failure", error)
    return type(failure).__name__ == "OutOfMemoryError" or "memory pressure" in str(failure) or "low on memory" in str(failure)


def lost_process(error: BaseException) -> ClusterError | None:
    """What an error says of a process that a command cannot go on without; None where it is about something else."""
    if not isinstance(error, ActorDiedError | NodeDiedError | OutOfMemoryError | WorkerCrashedError):
        return None
    if "creation task" in str(error):  # it was not killed: what it raised is in the error
        return None
    how = (
        "by Ray, as the memory of its node ran out"
        if is_by_memory(error)
        else "as by the kernel when memory runs out, or with its node"
    )
    return ClusterError(
        f"the processes of a command must live until it ends, got one that was killed {how}; {REMEDY_OF_WORKERS}. "
        "What was finished is kept: the same command goes on from there"
    )


def _order(error: BaseException) -> int:
    """Who hangs or dies is the cause; who only lost a connection is not."""
    if isinstance(error, WorkerHealthCheckTimeoutError | WorkerHealthCheckFailedError):
        return 0
    return 2 if _LOST_PEER.search(str(error)) else 1
