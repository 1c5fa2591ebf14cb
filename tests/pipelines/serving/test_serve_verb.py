"""The verb and the application builder: what they refuse before anything is started."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from grun.config import Recipe
from grun.errors import ConfigError
from pipelines.serve import _next, main
from pipelines.serving.app import application
from pipelines.serving.limits import API_KEY, read_key


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)


def test_an_open_address_needs_a_key(recipe_file: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"`serving\.host` must be a loopback address where no key is set, got '0\.0\.0\.0'"):
        main(["--recipe", recipe_file(), "--serving.host", "0.0.0.0"])


def test_a_port_that_is_taken_is_refused(recipe_file: Callable[..., str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"must be an address that is free, got 127\.0\.0\.1:{port}"):
            main(["--recipe", recipe_file(), "--serving.port", str(port)])


@pytest.mark.parametrize(("field", "value"), [("port", "0"), ("port", "70000"), ("batch_size", "0"), ("poll_seconds", "-1")])
def test_a_wrong_field_is_named(recipe_file: Callable[..., str], field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"`serving\.{field}`"):
        main(["--recipe", recipe_file(), f"--serving.{field}", value])


def test_the_application_takes_a_recipe_and_a_version(recipe_file: Callable[..., str], tmp_path: Path) -> None:
    assert application({"recipe": recipe_file(), "version": "3"}) is not None
    assert application({}) is not None
    for wrong in ({"verison": 3}, {"version": "three"}, {"version": 0}):
        with pytest.raises(ConfigError, match="the application takes `recipe` and `version`"):
            application(wrong)
    with pytest.raises(ConfigError, match="must be a readable file"):
        application({"recipe": str(tmp_path / "none.yaml")})
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"serving": {"hots": "x"}}))
    with pytest.raises(ConfigError, match="did you mean `host`"):
        application({"recipe": str(tmp_path / "bad.yaml")})


def test_a_replica_that_needs_a_key_does_not_start_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_key() is None
    with pytest.raises(ConfigError, match=f"set {API_KEY} where its replicas run"):
        read_key(required=True)
    monkeypatch.setenv(API_KEY, "k")
    assert read_key(required=True) == "k"


@pytest.mark.parametrize(
    ("model", "command"),
    [
        ("grun-demo", "pipelines/promote.py"),
        ("grun-ledger-demo", "pipelines/request.py next"),
        (None, "pipelines/request.py next"),
    ],
)
def test_the_champion_of_a_ledger_is_moved_by_the_ledger(model: str | None, command: str) -> None:
    health = {"champion": model and {"model": model}}
    assert _next(Recipe(), health, "--seed 1").startswith(f"python {command} --seed 1 ")
