"""Whether a worker is still there, as far as this machine can tell."""

import os
import socket
import subprocess
import sys

import pytest

from pipelines.owner import is_gone, owner, process_owner


def test_a_process_that_ended_is_gone_and_this_one_is_not() -> None:
    assert process_owner() == f"{owner()}:{os.getpid()}"
    assert not is_gone(process_owner())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    name = f"{owner()}:{ended.pid}"
    ended.wait()
    assert is_gone(name)


@pytest.mark.parametrize(
    "name", ["alice", "alice@elsewhere:1", f"alice@{socket.gethostname()}:x", f"alice@{socket.gethostname()}:{10**30}"]
)
def test_of_others_nothing_is_known(name: str) -> None:
    assert not is_gone(name)
