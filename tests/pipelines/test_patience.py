"""Patience: what is waited for and what is not, how often it is said, and who never waits."""

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from sqlalchemy.exc import IntegrityError, OperationalError

from grun.errors import OutageError, TrackingError
from pipelines.patience import Patience, PatientClient, is_outage

AWAY = MlflowException("no answer")


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; time passes in them alone."""
    pauses: list[float] = []
    monkeypatch.setattr("pipelines.patience.time.monotonic", lambda: sum(pauses))
    monkeypatch.setattr("pipelines.patience.time.sleep", pauses.append)
    return pauses


def failing(*errors: Exception) -> Callable[[], str]:
    """Raises them one after another, and then succeeds."""
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (AWAY, True),
        (MlflowException("disk is full", codes.TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("slower", codes.REQUEST_LIMIT_EXCEEDED), True),
        (MlflowException("no such key", codes.INVALID_PARAMETER_VALUE), False),
        (MlflowException("no", codes.PERMISSION_DENIED), False),
        (http_error(503), True),
        (http_error(404), False),
        (requests.ConnectionError("reset"), True),
        (OperationalError("SELECT", {}, Exception("the server closed the connection")), True),
        (IntegrityError("INSERT", {}, Exception("twice")), False),
        (OSError(errno.ENOSPC, "no space left"), True),
        (OSError(errno.EACCES, "permission denied"), False),
        (OutageError("away"), True),
        (TrackingError("refused"), False),
        (ValueError("a defect"), False),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(error: Exception, passes: bool) -> None:
    assert is_outage(error) is passes


def test_an_outage_is_waited_for_and_said_once(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert Patience(300).until(failing(AWAY, AWAY, AWAY)) == "done"
    assert clock == [0.5, 1.0, 2.0]
    assert capsys.readouterr().err.splitlines() == [
        "MLflow does not answer as it should; waiting for it, 300 s at most",
        "MLflow is back",
    ]


def test_the_last_error_is_raised_when_time_is_up(clock: list[float]) -> None:
    with pytest.raises(MlflowException):
        Patience(20).until(failing(*[AWAY] * 99))
    assert sum(clock) == 20


def test_a_refusal_is_raised_at_once(clock: list[float]) -> None:
    with pytest.raises(TrackingError):
        Patience(300).until(failing(TrackingError("refused")))
    assert clock == []


def test_what_is_already_patient_is_not_patient_within(clock: list[float]) -> None:
    waits = Patience(10)
    with pytest.raises(MlflowException):
        waits.until(lambda: waits.until(failing(*[AWAY] * 99)))
    assert sum(clock) == 10, "the two waits must not multiply"


def test_who_is_in_a_hurry_waits_for_nothing_and_others_do(clock: list[float]) -> None:
    waits, results = Patience(300), []
    with waits.hasty():
        with pytest.raises(MlflowException):
            waits.until(failing(AWAY))
        other = threading.Thread(target=lambda: results.append(waits.until(failing(AWAY))))
        other.start()
        other.join()
    assert results == ["done"]
    assert waits.until(failing(AWAY)) == "done"
    assert clock == [0.5, 0.5]


def test_every_call_of_a_client_is_patient_and_its_values_are_there(clock: list[float]) -> None:
    class Client:
        tracking_uri = "http://somewhere"
        call = staticmethod(failing(AWAY))

    client: Any = PatientClient(Client(), Patience(10))
    assert client.tracking_uri == "http://somewhere"
    assert client.call() == "done"
    assert clock == [0.5]
