"""What fails while answers are generated, said in the log: its kind and the size of the work, never a word of a text.

A failure that repeats may do so thousands of times a second: what is alike is one line a minute, which says how often.
"""

import logging
import queue
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from typing import Any

__all__ = ["Troubles", "pass_on"]

_logger = logging.getLogger(__name__)

_QUIET_SECONDS = 60.0


class Troubles:
    """Says what fails, and not too often.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}
        self._unsaid: Counter[str] = Counter()

    def tell(self, kind: str, work: str) -> None:
        """Say that something failed.

        Args:
            kind: what went wrong, in one of a few words: the name of an exception's class.
            work: what was being done, in numbers.
        """
        now = self._clock()
        if now - self._said.get(kind, -_QUIET_SECONDS) < _QUIET_SECONDS:
            self._unsaid[kind] += 1
            return
        more = self._unsaid.pop(kind, 0)
        self._said[kind] = now
        _logger.error("generating failed by %s, %s%s", kind, work, f" ({more} more since the last such line)" if more else "")


class _Teller(logging.Handler):
    """Passes lines on to somebody; who cannot be reached misses them."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one on."""
        with suppress(Exception):
            self._tell(record.getMessage())


def pass_on(tell: Callable[[str], None]) -> QueueListener:
    """Tell somebody as well, from a thread of its own: the engine waits for no cluster."""
    unread: queue.SimpleQueue[Any] = queue.SimpleQueue()
    listener = QueueListener(unread, _Teller(tell))
    listener.start()
    # a logger without handlers prints on stderr, and one with any has to be told to
    for handler in (logging.StreamHandler(), QueueHandler(unread)):
        _logger.addHandler(handler)
    return listener
