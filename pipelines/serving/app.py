"""The server as a Ray Serve application: one replica that holds the base, and whatever version is champion on it.

    serve run pipelines.serving.app:application recipe=my.yaml version=3

`version` pins one version; without it, the champion is followed. Whoever starts it this way decides where Serve
listens, so here the key is required.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import PositiveInt, ValidationError
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from grun.config import Config, Recipe, ServingConfig, read_recipe_file
from grun.errors import ConfigError
from grun.lm import FrozenLM
from pipelines.cluster import worker_environment
from pipelines.notices import say
from pipelines.serving.api import build_api
from pipelines.serving.champion import Found, LocalCopy, RegisteredChampion, served_names
from pipelines.serving.engine import Engine
from pipelines.serving.follower import Follower, Source
from pipelines.serving.limits import read_key
from pipelines.serving.loading import Served, load_base, load_version
from pipelines.serving.metrics import Metrics
from pipelines.serving.service import Service
from pipelines.serving.troubles import pass_on

__all__ = ["LOGGING", "Server", "application", "deployment_of", "end", "listen", "start_service"]

LOGGING = LoggingConfig(enable_access_log=False, log_level="WARNING")
"""What Serve writes to its logs: trouble, and no requests."""

_SPARE_REQUESTS = 64
"""Requests beyond those that generate: probes, scrapes, and those that are turned away."""

# asked every few seconds, the registry is not waited for
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}


@serve.deployment
@serve.ingress()
class Server:
    """A replica.

    Args:
        recipe: the recipe as plain values, with absolute paths.
        version: a version in place of the champion.
        needs_key: refuse to start without a key in this process' environment.
        has_listener: whether the driver passes on what is said to it.
    """

    def __init__(self, recipe: dict[str, Any], version: int | None, needs_key: bool, has_listener: bool) -> None:
        if has_listener:
            pass_on(say)
        os.environ.update({name: os.environ.get(name, value) for name, value in _IMPATIENT.items()})
        self._recipe = Recipe.parse(recipe)
        self._key = read_key(required=needs_key)
        self._base: FrozenLM | None = None
        names, folder = served_names(self._recipe), self._recipe.output / "serving"
        source, copy = RegisteredChampion(self._recipe, names, folder, version), LocalCopy(names, folder, version)
        self._service = start_service(self._recipe.serving, source, copy, self._load)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve calls for the application that it serves."""
        return build_api(self._service, self._key)

    def check_health(self) -> None:
        """What Serve calls to learn whether the replica has to be replaced."""
        if not self._service.engine.is_alive:
            raise RuntimeError("the engine ended")

    async def started(self) -> dict[str, Any]:
        """Its health, once the registry was asked for the first time."""
        await asyncio.to_thread(self._service.follower.looked.wait)
        return self._service.health()

    def _load(self, found: Found) -> Served:
        """Load a version; the base comes with the first, and stays."""
        if self._base is None:
            self._base = load_base(found.folder, self._recipe.model, use_gpu=self._recipe.serving.use_gpu)
        return load_version(found.champion.name, found.champion.version, found.folder, self._base)


def listen(host: str, port: int) -> None:
    """Start Serve on the connected cluster, listening there."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # in the driver it tells every step
    serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=LOGGING)


def end(name: str) -> None:
    """Take an application down once it has finished what is under way; on a cluster that stays, Serve as well."""
    serve.delete(name)
    if "RAY_ADDRESS" in os.environ:  # a local cluster ends as a whole, and Ray is loud about parts that end before
        serve.shutdown()


def start_service(config: ServingConfig, source: Source, copy: LocalCopy | None, load: Callable[[Found], Served]) -> Service:
    """Put the parts of a server together, and begin to follow a source of champions.

    Args:
        load: from files to a version in memory.
    """
    torch.set_num_threads(config.num_cpus)
    metrics = Metrics()
    engine = Engine(
        batch_size=config.batch_size,
        window_seconds=config.batch_window_ms / 1000,
        max_waiting=config.max_waiting,
        metrics=metrics,
    )
    follower = Follower(source, copy, load, engine.swap, metrics, config.poll_seconds)
    follower.start()
    return Service(config, engine, follower, metrics)


def deployment_of(
    recipe: Recipe, *, version: int | None = None, needs_key: bool, has_listener: bool = False
) -> serve.Application:
    """The application of a recipe; the arguments are those of :class:`Server`."""
    config = recipe.serving
    paths = {"output": str(recipe.output.absolute())}
    server: Any = Server
    bound: serve.Application = server.options(
        name="server",
        max_ongoing_requests=config.batch_size + config.max_waiting + _SPARE_REQUESTS,
        graceful_shutdown_timeout_s=10,
        logging_config=LOGGING,
        ray_actor_options={
            "num_cpus": config.num_cpus,
            "num_gpus": 1 if config.use_gpu else 0,
            "runtime_env": {"env_vars": {**worker_environment(use_gpu=config.use_gpu), "OMP_NUM_THREADS": str(config.num_cpus)}},
        },
    ).bind(recipe.replace(paths).model_dump(mode="json"), version, needs_key, has_listener)
    return bound


class _Arguments(Config):
    """Arguments of :func:`application`."""

    recipe: Path | None = None
    """A recipe file; unset: the embedded default."""
    version: PositiveInt | None = None
    """A version that is served whatever the champion is."""


def application(arguments: dict[str, Any]) -> serve.Application:
    """Build the application for `serve run` or a RayService.

    Raises:
        ConfigError: an argument, or the recipe, breaks a rule.
    """
    try:
        known = _Arguments.model_validate(arguments)
    except ValidationError as error:
        wrong = "; ".join(f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}" for item in error.errors(include_url=False))
        raise ConfigError(f"the application takes `recipe` and `version`, got something else: {wrong}") from None
    values = read_recipe_file(known.recipe) if known.recipe else {}
    recipe = Recipe.parse(values, where=f"recipe {str(known.recipe)!r}" if known.recipe else "the default")
    return deployment_of(recipe, version=known.version, needs_key=True)
