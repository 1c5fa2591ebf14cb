"""Wait for an MLflow that is away or fails: what comes of a full disk, a restart or a bad night passes, a refusal does not.

MLflow's client can repeat a request by itself, and would then do twice what a server did whose answer was lost. So it is told
not to, and repeating is done here, around things that may be done again: single calls that change nothing the second time, and
functions that look for what they are to make before they make it.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from grun.errors import OutageError
from pipelines.console import note

__all__ = ["Patience", "PatientClient", "is_outage"]

_Result = TypeVar("_Result")

_MAY_PASS = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
}
_FIRST_SECONDS, _LONGEST_SECONDS = 0.5, 10.0


def is_outage(error: BaseException) -> bool:
    """Whether what MLflow, its database or the network raised may pass by itself."""
    if isinstance(error, OutageError):
        return True
    from mlflow.exceptions import MlflowException
    from requests import HTTPError, RequestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        return error.error_code in _MAY_PASS
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code >= 500
    if isinstance(error, OperationalError | RequestException):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Patience:
    """How long the calls to one store wait for it. A thread inside :meth:`hasty`, or already inside :meth:`until`, waits for nothing.

    Args:
        seconds: how long a call is repeated, counted from its first failure; 0: never.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._thread = threading.local()

    def until(self, action: Callable[[], _Result]) -> _Result:
        """Do something that may be done again, until it succeeds, is refused, or time is up; what it raised last is raised then."""
        if not self._waits:
            return action()
        with self.hasty():
            return self._repeat(action)

    @contextmanager
    def hasty(self) -> Iterator[None]:
        """Let this thread's calls fail at once; for whoever asks again later anyway."""
        before = self._waits
        self._thread.waits = False
        try:
            yield
        finally:
            self._thread.waits = before

    @property
    def _waits(self) -> bool:
        return self.seconds > 0 and getattr(self._thread, "waits", True)

    def _repeat(self, action: Callable[[], _Result]) -> _Result:
        pause, end = _FIRST_SECONDS, None
        while True:
            try:
                result = action()
            except Exception as error:
                if not is_outage(error):
                    raise
                now = time.monotonic()
                if end is None:
                    end = now + self.seconds
                    note(f"MLflow does not answer as it should; waiting for it, {self.seconds:g} s at most")
                if now >= end:
                    raise
                time.sleep(min(pause, end - now))
                pause = min(2 * pause, _LONGEST_SECONDS)
            else:
                if end is not None:
                    note("MLflow is back")
                return result


class PatientClient:
    """An `MlflowClient` whose every call is patient."""

    def __init__(self, client: object, patience: Patience) -> None:
        self._client = client
        self._patience = patience

    def __getattr__(self, name: str) -> Any:
        """The client's own method, repeated while MLflow is away."""
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._patience.until(lambda: method(*args, **kwargs))

        return call if callable(method) else method
