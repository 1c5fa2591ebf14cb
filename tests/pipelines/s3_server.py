"""An S3 server process of moto's on a loopback port, and what a client needs to know of it."""

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from pyarrow import fs

from pipelines.benchmarks.servers import free_port

__all__ = ["S3Server", "running_s3"]


@dataclass(frozen=True)
class S3Server:
    """Where it is."""

    endpoint: str

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables by which clients find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "no-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its name."""
        fs.S3FileSystem(
            endpoint_override=self.endpoint,
            access_key="tester",
            secret_key="no-secret",
            region="us-east-1",
            allow_bucket_creation=True,
        ).create_dir(name)
        return name


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """Run a server for the time of the context."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        lines = iter(server.stderr or ())
        try:
            said: list[str] = []
            while not said or "Running on" not in said[-1]:
                said.append(next(lines, None) or pytest.fail(f"the S3 server did not start: {said}"))
            # it logs every request, and would wait for a full pipe to be read
            threading.Thread(target=deque, args=(lines, 0), daemon=True).start()
            yield S3Server(f"http://127.0.0.1:{port}")
        finally:
            server.kill()
