"""What comes before a request is looked at: the key, and a body that is neither too large nor too slow."""

import asyncio
import hmac
import os

from starlette.requests import Request

from grun.config import ServingConfig
from grun.errors import ConfigError
from pipelines.serving.refusals import RefusedError, invalid

__all__ = ["API_KEY", "check_exposure", "check_key", "is_loopback", "read_body", "read_key"]

API_KEY = "GRUN_API_KEY"
"""Environment variable that holds the key."""

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return host in _LOOPBACK


def read_key(*, required: bool = False) -> str | None:
    """The key that clients have to show, if there is one.

    Raises:
        ConfigError: there is none where one is required.
    """
    key = os.environ.get(API_KEY) or None
    if required and key is None:
        raise ConfigError(f"a server that others can reach must have a key, got none; set {API_KEY} where its replicas run")
    return key


def check_exposure(host: str, key: str | None) -> None:
    """Refuse to listen where anybody could ask.

    Raises:
        ConfigError: the address is not this machine's own, and there is no key.
    """
    if key is None and not is_loopback(host):
        raise ConfigError(
            f"`serving.host` must be a loopback address where no key is set, got {host!r}; set the environment variable {API_KEY}, "
            "or listen on 127.0.0.1"
        )


def check_key(request: Request, key: str | None) -> None:
    """Let in who shows the key; takes as long for a wrong one as for a right one.

    Raises:
        RefusedError: 401.
    """
    if key is None:
        return
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), key.encode()):
        raise RefusedError(
            401,
            "a request must show the server's key, got none or another; send `Authorization: Bearer <key>`",
            "authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def read_body(request: Request, config: ServingConfig) -> bytes:
    """Read a body, and stop where it becomes too large.

    Raises:
        RefusedError: 413 too large, 408 too slow.
    """
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise invalid("`Content-Length` must be a number, got something else; leave it to your client")
    if int(length[:20]) > config.max_body_bytes:
        raise _too_large(config)
    body = bytearray()
    try:
        async with asyncio.timeout(config.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > config.max_body_bytes:
                    raise _too_large(config)
    except TimeoutError:
        raise RefusedError(
            408, f"a body must arrive within {config.body_seconds:g} s, got a slower one; send it again", code="body_timeout"
        ) from None
    return bytes(body)


def _too_large(config: ServingConfig) -> RefusedError:
    return RefusedError(
        413,
        f"a body must have at most {config.max_body_bytes} bytes, got more; shorten it or send several requests",
        code="body_too_large",
    )
