"""The HTTP interface. Nothing that a client sends reaches a log, and no exception reaches whoever would log it."""

import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from pipelines.serving.answers import Style
from pipelines.serving.limits import check_key, read_body
from pipelines.serving.refusals import RefusedError
from pipelines.serving.service import Service

__all__ = ["build_api"]

_logger = logging.getLogger(__name__)

_NOBODY = 499
"""Status for a client that went away; it sees none."""


def build_api(service: Service, key: str | None) -> FastAPI:
    """The application.

    Args:
        key: what clients have to show; None lets everybody in.
    """
    # a path is spelled right or unknown: a redirect would name whatever host the client says we are
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_answers(api, service, key)
    _add_pages(api, service, key)

    @api.exception_handler(HTTPException)
    async def unknown(_request: Request, error: Exception) -> Response:
        """A path or a method that there is not."""
        assert isinstance(error, HTTPException)
        message = f"a request must be for a path and method that are served, got another ({error.status_code}); see /v1/models"
        return _refused(RefusedError(error.status_code, message, code="unknown_url", headers=dict(error.headers or {})))

    return api


def _add_answers(api: FastAPI, service: Service, key: str | None) -> None:
    """What generates."""

    async def answer(request: Request, style: Style) -> Response:
        started = time.monotonic()
        try:
            check_key(request, key)
            pending = service.accept(await read_body(request, service.config), style, started)
        except RefusedError as refusal:
            service.metrics.request(style, refusal.code or str(refusal.status), time.monotonic() - started)
            raise
        if pending.generation.streams:
            return StreamingResponse(
                service.streamed(pending), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        return _json(await service.whole(pending))

    @api.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _safely(lambda: answer(request, "completion"))

    @api.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _safely(lambda: answer(request, "chat"))


def _add_pages(api: FastAPI, service: Service, key: str | None) -> None:
    """What tells about the server."""

    async def keyed(request: Request, make: Callable[[], Response]) -> Response:
        check_key(request, key)
        return make()

    @api.get("/v1/models")
    async def models(request: Request) -> Response:
        return await _safely(lambda: keyed(request, lambda: _json(service.models())))

    @api.get("/v1/models/{name}")
    async def model(request: Request, name: str) -> Response:
        def one() -> Response:
            [found] = service.models()["data"]
            if found["id"] != name:
                raise RefusedError(
                    404, "a model must be one that /v1/models lists, got another", param="model", code="model_not_found"
                )
            return _json(found)

        return await _safely(lambda: keyed(request, one))

    @api.get("/metrics")
    async def metrics(request: Request) -> Response:
        def page() -> Response:
            return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

        return await _safely(lambda: keyed(request, page))

    def health_of(request: Request, word: str) -> Response:
        """Probes show no key: they learn whether it is well. Why not, and what it serves, is for those who may ask."""
        health = service.health()
        try:
            check_key(request, key)
            shown = health
        except RefusedError:
            shown = {name: health[name] for name in ("live", "ready")}
        return _json(shown, 200 if health[word] else 503)

    @api.get("/healthz")
    async def ready(request: Request) -> Response:
        return health_of(request, "ready")

    @api.get("/healthz/live")
    async def live(request: Request) -> Response:
        return health_of(request, "live")


async def _safely(answer: Callable[[], Awaitable[Response]]) -> Response:
    """Turn what is raised into a response."""
    try:
        return await answer()
    except RefusedError as refusal:
        return _refused(refusal)
    except ClientDisconnect:
        return Response(status_code=_NOBODY)
    except Exception as error:  # noqa: BLE001 - neither message nor traceback may be logged: they may hold text
        _logger.error("a request failed by %s", type(error).__name__)
        return _refused(
            RefusedError(500, "the request met a defect of the server; please report it", "server_error", code="defect")
        )


def _refused(refusal: RefusedError) -> Response:
    return _json(refusal.body(), refusal.status, refusal.headers)


def _json(values: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(values), status, headers, "application/json")
