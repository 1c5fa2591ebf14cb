"""From the body of a request to its answer, for as long as its client waits."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from grun.config import ServingConfig
from pipelines.serving.answers import Answer, Style, sse
from pipelines.serving.engine import Engine
from pipelines.serving.follower import Follower
from pipelines.serving.loading import Served
from pipelines.serving.metrics import Metrics
from pipelines.serving.refusals import RefusedError, context_exceeded, invalid
from pipelines.serving.rows import Generation, Row
from pipelines.serving.sampling import Chooser
from pipelines.serving.schema import ChatRequest, CompletionRequest, SharedFields, parse_body

__all__ = ["Pending", "Service"]

_logger = logging.getLogger(__name__)

_SEEDS = 2**63


@dataclass
class Pending:
    """A request that was accepted, and is being answered."""

    answer: Answer
    generation: Generation
    num_rows: int
    include_usage: bool
    started: float
    endpoint: str


class Service:
    """Answers requests with whatever version the engine has."""

    def __init__(self, config: ServingConfig, engine: Engine, follower: Follower, metrics: Metrics) -> None:
        self.config, self.engine, self.follower, self.metrics = config, engine, follower, metrics

    @property
    def served(self) -> Served:
        """The version that answers new requests.

        Raises:
            RefusedError: 503 while there is none.
        """
        served = self.engine.served
        if served is None:
            raise RefusedError(
                503,
                "the server must have a champion to answer, got none yet; /healthz says why, try again later",
                "server_error",
                code="no_champion",
                headers={"Retry-After": str(max(1, round(self.config.poll_seconds)))},
            )
        return served

    def health(self) -> dict[str, Any]:
        """Whether it answers, with which version, and what is wrong."""
        served, status = self.engine.served, self.follower.status
        champion = served and {
            "model": served.name,
            "version": served.version,
            "digest": served.digest,
            "requests": served.request_ids,
        }
        return {
            "live": self.engine.is_alive,
            "ready": served is not None and self.engine.is_alive,
            "champion": champion,
            **asdict(status),
        }

    def models(self) -> dict[str, Any]:
        """What can be asked for: the champion."""
        served = self.served
        model = {
            "id": served.name,
            "object": "model",
            "created": 0,
            "owned_by": "grun",
            "grun": {"version": served.version, "digest": served.digest},
        }
        return {"object": "list", "data": [model]}

    def accept(self, body: bytes, style: Style, started: float) -> Pending:
        """Read a request, and hand it to the engine.

        Raises:
            RefusedError: whatever is wrong with it, or with the moment.
        """
        served = self.served
        request: CompletionRequest | ChatRequest
        if style == "completion":
            request = parse_body(body, CompletionRequest)
            self._check_model(request, served)
            prompts = _completion_prompts(request, served)
            limit, param = request.max_tokens, "prompt"
        else:
            request = parse_body(body, ChatRequest)
            self._check_model(request, served)
            prompts = [served.reader.asked(request.messages)]
            limit, param = request.max_completion_tokens or request.max_tokens, "messages"
        lengths = [self._new_tokens(len(prompt), limit, served.reader.context, param) for prompt in prompts]
        self.engine.check_room(len(prompts) * request.n)
        # whoever reads the prompt also answers it: another version may have been trained with another template
        generation = Generation(asyncio.get_running_loop(), request.stream, served=served)
        rows = list(_rows(request, generation, prompts, lengths))
        self.engine.submit(rows)
        answer = Answer(
            style,
            request.model,
            len(rows),
            sum(map(len, prompts)),
            request.grun.telemetry,
            strip=style == "chat" and served.reader.strips_answers,
        )
        return Pending(answer, generation, len(rows), request.stream_options.include_usage, started, style)

    async def whole(self, pending: Pending) -> dict[str, Any]:
        """The answer in one piece.

        Raises:
            RefusedError: 504, or what kept the engine from answering.
        """
        async with self._watched(pending):
            async for _chunk in self._chunks(pending):
                pass
            return pending.answer.whole()

    async def streamed(self, pending: Pending) -> AsyncIterator[bytes]:
        """The answer in server-sent events; an error that comes late is one of them."""
        try:
            async with self._watched(pending):
                first = True
                async for chunk in self._chunks(pending):
                    if first:
                        for opening in pending.answer.opening():
                            yield sse(opening)
                        first = False
                    yield sse(chunk)
                if pending.include_usage:
                    yield sse(pending.answer.closing())
        except RefusedError as refusal:
            yield sse(refusal.body())
            return
        yield sse("[DONE]")

    async def _chunks(self, pending: Pending) -> AsyncIterator[dict[str, Any]]:
        answer, generation = pending.answer, pending.generation
        deadline = pending.started + self.config.request_seconds
        waits_for_first = True
        while not answer.is_done:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    event = await generation.events.get()
            except TimeoutError:
                raise RefusedError(
                    504,
                    f"an answer must be complete within {self.config.request_seconds:g} s, got a longer one; ask for fewer tokens",
                    "server_error",
                    code="timeout",
                ) from None
            if event.error is not None:
                raise event.error
            answer.served = generation.served
            if waits_for_first:
                self.metrics.first_text(time.monotonic() - pending.started)
                waits_for_first = False
            yield answer.chunk(event, answer.take(event))

    @asynccontextmanager
    async def _watched(self, pending: Pending) -> AsyncIterator[None]:
        """Count what becomes of a request, and tell the engine when nobody waits any more."""
        outcome = "disconnected"
        try:
            yield
            outcome = "answered"
            self.metrics.tokens(pending.answer.prompt_tokens, pending.answer.completion_tokens)
        except RefusedError as refusal:
            outcome = refusal.code or str(refusal.status)
            raise
        finally:
            pending.generation.left = True
            self.metrics.request(pending.endpoint, outcome, time.monotonic() - pending.started)

    def _check_model(self, request: SharedFields, served: Served) -> None:
        if request.model != served.name:
            raise RefusedError(
                404,
                f"`model` must be one that /v1/models lists, got another; the served one is {served.name!r}",
                param="model",
                code="model_not_found",
            )

    def _new_tokens(self, prompt: int, wanted: int | None, context: int, param: str) -> int:
        """How many tokens a prompt of some length may be continued by."""
        if prompt == 0:
            raise invalid("a prompt must hold at least one token, got an empty one; write something", param)
        if wanted is None:
            wanted = max(1, min(self.config.max_new_tokens, context - prompt))
        if prompt + wanted > context:
            raise context_exceeded(context, prompt, wanted, param)
        return wanted


def _completion_prompts(request: CompletionRequest, served: Served) -> list[list[int]]:
    reader = served.reader
    prompts = [reader.written(prompt) if isinstance(prompt, str) else reader.given(prompt) for prompt in request.prompts]
    if not prompts:
        raise invalid("`prompt` must hold at least one prompt, got an empty list; add one", "prompt")
    return prompts


def _rows(
    request: SharedFields, generation: Generation, prompts: Sequence[Sequence[int]], lengths: Sequence[int]
) -> Sequence[Row]:
    """A row for each choice: the choices of the first prompt, then those of the second; each draws from a seed of its own."""
    seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
    return [
        Row(
            generation,
            index * request.n + copy,
            prompt,
            length,
            Chooser(request.temperature, request.top_p, (seed + copy) % _SEEDS),
            request.stop,
        )
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
        for copy in range(request.n)
    ]
