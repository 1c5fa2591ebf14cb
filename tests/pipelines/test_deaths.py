"""Why a worker is replaced, in words; memory that ran out, told from other errors."""

import errno

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from pipelines.deaths import cause_of_death, lost_process
from pipelines.running import _status_of
from pipelines.shortage import is_shortage, shortage_message

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer. Check the logs!")
DIED = WorkerHealthCheckFailedError("A worker health check failed.", failure=ActorDiedError())
HANGS = WorkerHealthCheckTimeoutError("A worker health check has been hanging.")
SHORT = WorkerHealthCheckFailedError("A worker health check failed.", failure=OutOfMemoryError("Task was killed: low on memory."))


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({0: LOST, 1: DIED}, "worker 1 was killed, as by the kernel when memory runs out (then lower `train.batch_size`"),
        ({0: LOST, 3: HANGS}, "worker 3 did not answer for 8 s and is replaced"),
        ({0: LOST, 1: ValueError("no\nsuch thing")}, "worker 1 failed with ValueError: such thing"),
        ({0: LOST}, "worker 0 lost the connection to another one, which was killed or crashed"),
        ({2: SHORT}, "worker 2 was killed by Ray, as the memory of its node ran out (lower `train.batch_size`"),
    ],
    ids=["died", "hangs", "failed", "lost", "short"],
)
def test_the_worker_that_failed_first_is_named(failures: dict[int, Exception], said: str) -> None:
    assert cause_of_death(failures, 8.0).startswith(said)


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (
            OutOfMemoryError("7 worker(s) were killed due to the node running low on memory."),
            "by Ray, as the memory of its node ran",
        ),
        (WorkerCrashedError(), "as by the kernel when memory runs out, or with its node; "),
        (ActorDiedError(), "as by the kernel when memory runs out, or with its node; "),
    ],
    ids=["memory", "task", "actor"],
)
def test_a_process_that_a_command_cannot_go_on_without_is_no_defect(
    error: Exception, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> int:
        raise error

    assert _status_of(fails) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: the processes of a command must live until it ends, got one that was killed {how}"), said
    assert "lower `train.batch_size`" in said
    assert said.endswith("the same command goes on from there\n")


def test_what_an_actor_raised_as_it_was_made_is_shown() -> None:
    raised = RayTaskError("__init__", "Traceback ...", KeyError("x"), actor_id="a1")
    assert lost_process(ActorDiedError(raised)) is None
    assert lost_process(KeyError("x")) is None


def test_what_torch_says_of_memory_is_understood() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_shortage(raised.value)
    message = shortage_message("worker 1 on node-a", raised.value, "lower `x`")
    assert message.startswith("worker 1 on node-a must have the memory that its work takes, got RuntimeError: can't allocate")
    assert message.endswith("; lower `x`")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_memory_that_ran_out_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_shortage(error) is expected
