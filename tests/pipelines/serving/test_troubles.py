"""What is said of failures: once, then how often; to whoever listens, whatever becomes of them."""

import logging
from collections.abc import Iterator

import pytest

from pipelines.serving.troubles import Troubles, pass_on


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The log, with the handlers that it had."""
    logger = logging.getLogger("pipelines.serving.troubles")
    kept = list(logger.handlers)
    yield logger
    logger.handlers = kept


def test_what_repeats_is_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    troubles = Troubles(lambda: now)
    for second in range(0, 130, 10):
        now = float(second)
        troubles.tell("ValueError", f"reading {second} answer(s)")
    troubles.tell("MemoryError", "reading 1 answer(s)")
    assert [record.getMessage() for record in caplog.records] == [
        "generating failed by ValueError, reading 0 answer(s)",
        "generating failed by ValueError, reading 60 answer(s) (5 more since the last such line)",
        "generating failed by ValueError, reading 120 answer(s) (5 more since the last such line)",
        "generating failed by MemoryError, reading 1 answer(s)",
    ]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_who_listens_is_told_and_who_cannot_be_reached_stops_nothing(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        raise ConnectionError("no cluster")

    listener, troubles = pass_on(tell), Troubles()
    for kind in ("ValueError", "KeyError"):
        troubles.tell(kind, "reading 1 answer(s)")
    listener.stop()
    lines = [f"generating failed by {kind}, reading 1 answer(s)" for kind in ("ValueError", "KeyError")]
    assert told == lines
    assert capfd.readouterr().err.splitlines() == lines, "the process' own output has them too, and no traceback"
