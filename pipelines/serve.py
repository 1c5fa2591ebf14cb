"""Serve: answer requests with the registry's champion, OpenAI-compatible, until Ctrl-C.

    python pipelines/serve.py [--recipe FILE] [--field value]

The model that is served is `serving.registered_model`; unset, the ledger's model if it has a champion when the server
starts, else the request's own. The server follows the champion: when it moves, answers change within
`serving.poll_seconds`. The name stays, as clients ask for the model by it.
"""

import pipelines.first  # noqa: F401 - before what takes seconds to import

# isort: split

import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve

from grun.config import Recipe
from grun.errors import ClusterError, ConfigError
from pipelines.cli import next_step, parse_command
from pipelines.cluster import connected
from pipelines.console import check_writable, note, summary
from pipelines.running import run_command
from pipelines.serving.app import deployment_of, end, listen
from pipelines.serving.limits import API_KEY, check_exposure, is_loopback, read_key

__all__ = ["main"]

_APPLICATION = "grun"


def _check_port(recipe: Recipe) -> None:
    """Refuse an address that nobody can listen on.

    Raises:
        ConfigError: with the system's reason.
    """
    host, port = recipe.serving.host, recipe.serving.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"`serving.host` and `serving.port` must be an address that is free, got {host}:{port} ({error.strerror}); "
            "choose another port, or end what listens there"
        ) from None


def _check_room(recipe: Recipe) -> None:
    """Refuse a server that the cluster can never hold.

    Raises:
        ClusterError: with what is needed and what there is.
    """
    have, config = ray.cluster_resources(), recipe.serving
    for kind, needed in {"CPU": config.num_cpus, "GPU": 1 if config.use_gpu else 0}.items():
        if needed > have.get(kind, 0):
            raise ClusterError(
                f"the cluster must hold the server, got {needed} {kind}(s) needed and {have.get(kind, 0):g} in the cluster; "
                "change `serving.num_cpus` or `serving.use_gpu`, or add nodes"
            )


def _state(health: dict[str, Any]) -> dict[str, str]:
    champion, error = health["champion"], health["error"]
    shown = f"version {champion['version']} of {champion['model']}, from the {health['origin']}" if champion else "none yet"
    return {"champion": shown, **({"digest": champion["digest"]} if champion else {}), **({"trouble": error} if error else {})}


def _next(recipe: Recipe, health: dict[str, Any], again: str) -> str:
    """How the champion of what is served is moved: by the ledger, or by promotion; by the ledger too where there is none yet."""
    champion = health["champion"]
    if champion and champion["model"] != recipe.ledger_model:
        return next_step("promote", again, "move the champion; the server follows")
    return next_step("request", again, "move the champion; the server follows", "next")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    recipe, options = parse_command("Serve the registry's champion, OpenAI-compatible, until Ctrl-C.", argv)
    config, key = recipe.serving, read_key()
    check_exposure(config.host, key)
    check_writable(recipe.output)
    _check_port(recipe)
    with connected(recipe):
        _check_room(recipe)
        listen(config.host, config.port)
        try:
            application = deployment_of(recipe, needs_key=not is_loopback(config.host), has_listener=True)
            handle: Any = serve.run(application, name=_APPLICATION, route_prefix="/")
            health = handle.started.remote().result()
            address = f"http://{config.host if ':' not in config.host else f'[{config.host}]'}:{config.port}"
            summary(
                f"serving at {address}/v1",
                {
                    **_state(health),
                    "key": f"the one in {API_KEY}" if key else "none: this machine alone may ask",
                    "health": f"{address}/healthz",
                    "metrics": f"{address}/metrics",
                },
                [_next(recipe, health, options.again)],
            )
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            note("stopping: answers that are under way are finished")
        finally:
            end(_APPLICATION)
    return 0


if __name__ == "__main__":
    run_command(main)
