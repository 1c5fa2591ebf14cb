"""The interface in process, without Ray: every refusal by its status and words, and the shape of every answer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from grun.config import ServingConfig
from grun.errors import ConfigError
from grun.lm import FrozenLM
from pipelines.serving.answers import Answer
from pipelines.serving.api import build_api
from pipelines.serving.engine import Engine
from pipelines.serving.follower import Follower
from pipelines.serving.limits import check_exposure
from pipelines.serving.loading import Served, load_version
from pipelines.serving.metrics import Metrics
from pipelines.serving.rows import Event
from pipelines.serving.service import Service
from tests.pipelines.serving.shelf import write_adapter

PROMPT = "Question: Where does Ilva Torrent live?\nAnswer:"
SECRET = "the number of Ilva Torrent"


class Nowhere:
    """A registry that is never asked."""

    look = fetch = None


@pytest.fixture(scope="module")
def served(base: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = write_adapter(tmp_path_factory.mktemp("api") / "a", base, "a", 1)
    return load_version("grun-towns", 3, folder, base)


@asynccontextmanager
async def asking(
    served: Served | None, key: str | None = None, **fields: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of a server with some configuration."""
    config, metrics = ServingConfig(**{"batch_window_ms": 0, "max_new_tokens": 8, **fields}), Metrics()
    engine = Engine(batch_size=config.batch_size, window_seconds=0, max_waiting=config.max_waiting, metrics=metrics)
    follower = Follower(Nowhere(), None, lambda _found: None, engine.swap, metrics, 1)  # type: ignore[arg-type,return-value]
    service = Service(config, engine, follower, metrics)
    if served is not None:
        await asyncio.to_thread(engine.swap, served)
        metrics.swapped(served)
    transport = httpx.ASGITransport(build_api(service, key))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client, service
    finally:
        await asyncio.to_thread(engine.close)


@pytest.fixture
def post(served: Served) -> Callable[..., httpx.Response]:
    """Posts one body to a fresh server."""

    def one(path: str, body: Any, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        async def scenario() -> httpx.Response:
            async with asking(served, **fields) as (client, _service):
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                return await client.post(path, content=content, headers=headers)

        return asyncio.run(scenario())

    return one


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "grun-towns", "prompt": PROMPT, "temperature": 0, **fields}


def chat(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    messages = [{"role": role, "content": text} for role, text in turns or (("user", "Where does Ilva Torrent live?"),)]
    return {"model": "grun-towns", "messages": messages, "temperature": 0, **fields}


def alone(served: Served, prompt: str, tokens: int = 8) -> str:
    return served.model.generate([served.reader.written(prompt)], max_new_tokens=tokens).texts[0]


def events(answer: httpx.Response) -> list[Any]:
    """The events of a stream; the last is [DONE]."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


Post = Callable[..., httpx.Response]


def test_a_completion_has_openais_shape(post: Post, served: Served) -> None:
    answer = post("/v1/completions", completion()).json()
    tokens = len(served.reader.written(PROMPT))
    assert answer["choices"][0]["text"].strip() == alone(served, PROMPT)
    assert answer["choices"][0] | {"text": ""} == {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    assert answer["usage"] == {"prompt_tokens": tokens, "completion_tokens": 8, "total_tokens": tokens + 8}
    assert (answer["object"], answer["model"]) == ("text_completion", "grun-towns")
    assert answer["id"].startswith("cmpl-")
    assert answer["system_fingerprint"] == f"grun-towns-v3-{served.digest[:12]}"
    assert answer["grun"] == {"model": "grun-towns", "version": 3, "digest": served.digest}


def test_a_chat_has_openais_shape_and_no_space_before_its_answer(post: Post, served: Served) -> None:
    answer = post("/v1/chat/completions", chat()).json()
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": message["content"]}
    assert message["content"].rstrip() == alone(served, PROMPT)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")


def test_the_space_that_separates_an_answer_from_its_prompt_is_none_of_a_chats() -> None:
    for strip, said in ((True, ["", "a", " b "]), (False, [" ", " a", " b "])):
        answer = Answer("chat", "m", 1, 3, telemetry=False, strip=strip)
        assert [answer.take(Event(0, text)) for text in (" ", " a", " b ")] == said
        assert answer.choices[0].text == "".join(said)


def test_several_prompts_have_their_choices_in_order(post: Post, served: Served) -> None:
    prompts = [PROMPT, "Question: Who?\nAnswer:"]
    choices = post("/v1/completions", completion(prompt=prompts, n=2)).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"].strip() for choice in choices] == [alone(served, prompt) for prompt in prompts for _ in range(2)]
    ids = [served.reader.written(prompt) for prompt in prompts]
    assert [choice["text"] for choice in post("/v1/completions", completion(prompt=ids)).json()["choices"]] == [
        choices[0]["text"], choices[2]["text"]
    ]  # fmt: skip
    assert post("/v1/completions", completion(prompt=ids[1])).json()["choices"][0]["text"] == choices[2]["text"]


def test_no_row_is_made_for_answers_that_there_is_never_room_for(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serving.service.Row", lambda *_: pytest.fail("a row was made"))
    answer = post("/v1/completions", completion(prompt=[[5]] * 100_000, n=128, max_tokens=1))
    assert answer.status_code == 400
    assert "at most 288 answers" in answer.json()["error"]["message"]


def test_drawn_choices_differ_and_a_seed_repeats_them(post: Post) -> None:
    first, again = (post("/v1/completions", completion(temperature=1, n=3, seed=5)).json()["choices"] for _ in range(2))
    assert first == again
    assert len({choice["text"] for choice in first}) > 1
    unseeded = {post("/v1/completions", completion(temperature=1)).json()["choices"][0]["text"] for _ in range(4)}
    assert len(unseeded) > 1


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", completion(n=2)), ("/v1/chat/completions", chat(n=2))])
def test_a_stream_adds_up_to_the_whole(post: Post, path: str, body: dict[str, Any]) -> None:
    whole = post(path, body).json()
    chunks = events(post(path, body | {"stream": True, "stream_options": {"include_usage": True}}))
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["grun"] == whole["grun"] for chunk in chunks)
    for index, choice in enumerate(whole["choices"]):
        mine = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
        if path == "/v1/completions":
            assert "".join(part["text"] for part in mine) == choice["text"]
        else:
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(part["delta"].get("content", "") for part in mine) == choice["message"]["content"]
        assert [part["finish_reason"] for part in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
    assert chunks[-1] == {**chunks[-1], "choices": [], "usage": whole["usage"]}
    assert all("usage" not in chunk for chunk in events(post(path, body | {"stream": True})))


def test_a_stop_string_is_not_in_the_answer(post: Post, served: Served) -> None:
    whole = post("/v1/completions", completion()).json()["choices"][0]["text"]
    stop = whole[3:5]
    choice = post("/v1/completions", completion(stop=[stop, "never"])).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole.split(stop)[0], "stop")


def test_telemetry_comes_on_request_only(post: Post) -> None:
    assert "grun" not in post("/v1/completions", completion()).json()["choices"][0]
    [choice] = post("/v1/completions", completion(grun={"telemetry": True})).json()["choices"]
    assert [(gate["request_id"], gate["layer"], gate["open"]) for gate in choice["grun"]["gates"]] == [
        ("a", 1, True),
        ("a", 3, True),
    ]
    assert all(0.5 <= gate["value"] <= 1 for gate in choice["grun"]["gates"])
    last = events(post("/v1/completions", completion(grun={"telemetry": True}, stream=True)))[-1]
    assert last["choices"][0]["grun"] == choice["grun"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "message"),
    [
        ("/v1/completions", b"{", 400, None, "the body must be JSON"),
        ("/v1/completions", b'{"prompt": "a", "prompt": "' + SECRET.encode() + b'"}', 400, None, "got `prompt` twice; leave one"),
        ("/v1/completions", b'{"model": "grun-towns", "prompt": "a", "x": NaN}', 400, None, "NaN, which is no JSON number"),
        ("/v1/completions", completion(model=SECRET), 404, "model_not_found", "`model` must be one that /v1/models lists"),
        ("/v1/chat/completions", chat(model="x"), 404, "model_not_found", "`model` must be one that /v1/models lists"),
        ("/v1/completions", completion(max_tokens="x"), 400, None, "`max_tokens`"),
        ("/v1/completions", completion(prompt=""), 400, None, "at least one token"),
        ("/v1/completions", completion(prompt=[]), 400, None, "at least one prompt"),
        ("/v1/completions", completion(prompt=[[]]), 400, None, "at least one token"),
        ("/v1/completions", completion(prompt=[999]), 400, None, "token ids must lie in 0..319"),
        ("/v1/completions", completion(prompt=SECRET * 40), 400, "context_length_exceeded", "must fit the context of 128 tokens"),
        ("/v1/completions", completion(max_tokens=128), 400, "context_length_exceeded", "must fit the context of 128 tokens"),
        ("/v1/completions", completion(echo=True), 400, "unsupported_parameter", "`echo` is not served"),
        ("/v1/chat/completions", chat(logprobs=True), 400, "unsupported_parameter", "`logprobs` is not served"),
        ("/v1/chat/completions", chat(("assistant", SECRET)), 400, None, "must let user and assistant take turns"),
        ("/v1/completions", b"a" * 2001, 413, "body_too_large", "at most 2000 bytes"),
        ("/v1/completions", completion(n=128, prompt=[PROMPT] * 3), 400, None, "at most 288 answers"),
        ("/v1/embeddings", {"input": SECRET}, 404, "unknown_url", "path and method that are served"),
        ("/v1/completions/", completion(), 404, "unknown_url", "path and method that are served"),
        ("/v1/models", {}, 405, "unknown_url", "path and method that are served"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused_says_why_in_openais_shape(
    post: Post, path: str, body: Any, status: int, code: str | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = post(path, body, max_body_bytes=2000)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert SECRET not in answer.text + caplog.text


def test_a_body_without_a_length_is_measured_as_it_comes(served: Served) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"a" * 100

    async def scenario() -> None:
        async with asking(served, max_body_bytes=2000) as (client, _service):
            assert (await client.post("/v1/completions", content=body())).status_code == 413

    asyncio.run(scenario())


def test_a_slow_body_is_not_waited_for(served: Served) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with asking(served, body_seconds=0.05) as (client, _service):
            answer = await client.post("/v1/completions", content=body())
            assert (answer.status_code, answer.json()["error"]["code"]) == (408, "body_timeout")

    asyncio.run(scenario())


def test_an_answer_that_takes_too_long_is_given_up(served: Served) -> None:
    async def scenario() -> None:
        async with asking(served, request_seconds=0.001) as (client, service):
            answer = await client.post("/v1/completions", json=completion(max_tokens=90))
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
            late = await client.post("/v1/completions", json=completion(max_tokens=90, stream=True))
            assert late.status_code == 200, "a stream has begun by then: the error is an event"
            assert json.loads(late.text.removeprefix("data: "))["error"]["code"] == "timeout"
            assert 'outcome="timeout"} 2.0' in service.metrics.page().decode()

    asyncio.run(scenario())


def test_a_full_queue_says_when_to_come_back(served: Served) -> None:
    async def scenario() -> None:
        async with asking(served, batch_size=1, max_waiting=1) as (client, _service):
            answers = await asyncio.gather(*(client.post("/v1/completions", json=completion(max_tokens=90)) for _ in range(6)))
            statuses = [answer.status_code for answer in answers]
            assert set(statuses) == {200, 429}
            refused = answers[statuses.index(429)]
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert (await client.post("/v1/completions", json=completion())).status_code == 200

    asyncio.run(scenario())


def test_the_version_that_read_a_prompt_answers_it(served: Served) -> None:
    async def scenario() -> None:
        async with asking(served, batch_size=1) as (_client, service):
            body = json.dumps(completion(max_tokens=90)).encode()
            running, waiting = (service.accept(body, "completion", time.monotonic()) for _ in range(2))
            await asyncio.to_thread(service.engine.swap, replace(served, version=4))
            assert (await service.whole(running))["grun"]["version"] == 3
            assert (await service.whole(waiting))["grun"]["version"] == 3
            later = service.accept(body, "completion", time.monotonic())
            assert (await service.whole(later))["grun"]["version"] == 4

    asyncio.run(scenario())


def test_before_the_first_champion_it_lives_and_is_not_ready() -> None:
    async def scenario() -> None:
        async with asking(None) as (client, _service):
            health = await client.get("/healthz")
            assert (health.status_code, health.json()["live"], health.json()["ready"]) == (503, True, False)
            assert (await client.get("/healthz/live")).status_code == 200
            for answer in (await client.post("/v1/completions", json=completion()), await client.get("/v1/models")):
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_champion")
                assert int(answer.headers["retry-after"]) >= 1

    asyncio.run(scenario())


def test_models_and_health_name_version_and_digest(served: Served) -> None:
    async def scenario() -> None:
        async with asking(served) as (client, _service):
            [model] = (await client.get("/v1/models")).json()["data"]
            assert (model["id"], model["grun"]) == ("grun-towns", {"version": 3, "digest": served.digest})
            assert (await client.get("/v1/models/grun-towns")).json() == model
            assert (await client.get("/v1/models/other")).status_code == 404
            health = (await client.get("/healthz")).json()
            assert health["champion"] == {"model": "grun-towns", "version": 3, "digest": served.digest, "requests": ["a"]}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic k\u00e9y".encode("latin-1").decode("latin-1")}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Bearer key"}, 200),
        ({"authorization": "bearer key"}, 200),
    ],
)
def test_a_key_is_asked_for_wherever_text_or_counts_are(served: Served, headers: dict[str, str], status: int) -> None:
    async def scenario() -> None:
        async with asking(served, key="key") as (client, _service):
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            paths: Sequence[tuple[str, str, Any]] = (
                ("POST", "/v1/completions", completion()),
                ("POST", "/v1/chat/completions", chat()),
                ("GET", "/v1/models", None),
                ("GET", "/metrics", None),
            )
            for method, path, body in paths:
                answer = await client.request(method, path, json=body, headers=raw)
                assert answer.status_code == status, path
                if status == 401:
                    assert answer.json()["error"]["code"] == "invalid_api_key"
            health = await client.get("/healthz", headers=raw)
            assert health.status_code == 200, "probes have no key"
            assert ("champion" in health.json()) == (status == 200)

    asyncio.run(scenario())


@pytest.mark.parametrize(("host", "key", "allowed"), [
    ("127.0.0.1", None, True), ("::1", None, True), ("localhost", None, True), ("0.0.0.0", "k", True),
    ("0.0.0.0", None, False), ("::", None, False), ("192.0.2.7", None, False), ("", None, False),
])  # fmt: skip
def test_nobody_else_may_ask_without_a_key(host: str, key: str | None, allowed: bool) -> None:
    if allowed:
        check_exposure(host, key)
    else:
        with pytest.raises(ConfigError, match=r"`serving\.host` must be a loopback address where no key is set"):
            check_exposure(host, key)


def test_metrics_count_what_happened(served: Served) -> None:
    async def scenario() -> str:
        async with asking(served) as (client, _service):
            await client.post("/v1/completions", json=completion())
            await client.post("/v1/completions", json=completion(stream=True))
            await client.post("/v1/completions", json=completion(echo=True))
            return (await client.get("/metrics")).text

    page = asyncio.run(scenario())
    tokens = len(served.reader.written(PROMPT))
    for line in (
        'grun_requests_total{endpoint="completion",outcome="answered"} 2.0',
        'grun_requests_total{endpoint="completion",outcome="unsupported_parameter"} 1.0',
        f'grun_tokens_total{{part="prompt"}} {2.0 * tokens}',
        'grun_tokens_total{part="completion"} 16.0',
        'grun_gate_open_total{request_id="a"} 2.0',
        "grun_prompts_read_total 2.0",
        "grun_first_token_seconds_count 2.0",
        'grun_champion_version{digest="' + served.digest + '",model="grun-towns"} 3.0',
    ):
        assert line in page


def test_an_error_of_ours_is_neither_shown_nor_logged_in_its_words(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> httpx.Response:
        async with asking(served) as (client, service):
            monkeypatch.setattr(service.engine, "submit", lambda _rows: dict[str, None]()[SECRET])
            return await client.post("/v1/completions", json=completion())

    answer = asyncio.run(scenario())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "defect")
    assert SECRET not in answer.text + caplog.text
    assert "a request failed by KeyError" in caplog.text


def test_a_verb_does_not_take_the_key_for_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.cli import parse_command

    monkeypatch.setenv("GRUN_API_KEY", "k")
    parse_command("", [])
    monkeypatch.setenv("GRUN_API_KEYS", "k")
    with pytest.raises(ConfigError, match="GRUN_API_KEYS"):
        parse_command("", [])
