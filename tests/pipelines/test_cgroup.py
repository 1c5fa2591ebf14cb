"""Small nodes made of control groups: what is in one ends with it."""

import signal
import subprocess
import uuid

import pytest

from grun.errors import ClusterError
from pipelines.benchmarks.cgroup import check_quotas, cpu_quota


def test_what_is_left_in_a_group_ends_with_it() -> None:
    try:
        check_quotas()
    except ClusterError as error:
        pytest.skip(f"{error}: no group was made")
    with cpu_quota(f"grun-test-{uuid.uuid4().hex}", 0.5) as quota:
        process = subprocess.Popen(["sleep", "600"])
        quota.hold(process.pid)
        assert quota.folder.is_dir()
    assert process.wait() == -signal.SIGKILL
    assert not quota.folder.exists()
