"""The server as a user runs it: a process of its own on a local Ray, a real registry, and OpenAI's own client."""

import asyncio
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from grun.config import Recipe
from grun.lm import FrozenLM, load_frozen_lm
from pipelines.registry import CHAMPION
from pipelines.serving.loading import Served, load_version
from pipelines.tracking import Tracker
from tests.pipelines.serving.process import START_SECONDS, Running, running
from tests.pipelines.serving.shelf import Shelf

pytestmark = pytest.mark.slow

QUESTION = "Where does Ilva Torrent live?"
PROMPTS = tuple(f"Question: {question}\nAnswer:" for question in (QUESTION, "Who?", "What does she paint at night?"))
TOKENS = 24
SWAPS, CLIENTS = 20, 8
MARK = "zanzibarquux"


@dataclass(frozen=True)
class Site:
    """A registry with four versions, and what each says by itself."""

    recipe: Recipe
    shelf: Shelf
    versions: dict[int, Served]

    def alone(self, version: int, prompt: str) -> str:
        served = self.versions[version]
        return served.model.generate([served.reader.written(prompt)], max_new_tokens=TOKENS).texts[0]

    def move_champion(self, version: int) -> None:
        self.shelf.tracker.client.set_registered_model_alias(self.shelf.name, CHAMPION, str(version))


@pytest.fixture(scope="module")
def site(make_recipe: Callable[..., Recipe], base: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    serving = {"poll_seconds": 0.1, "batch_window_ms": 5, "max_new_tokens": TOKENS, "batch_size": 16, "body_seconds": 10}
    recipe = make_recipe(output=str(folder / "outputs"), serving=serving)
    shelf = Shelf(Tracker.open(recipe.tracking, recipe.output), base, folder / "made", recipe.registered_model)
    versions: dict[int, Served] = {}
    for members in ([("a", 1)], [("a", 1), ("b", 2)], [("b", 3), ("c", 4)], [("d", 5)]):
        stack = shelf.stack(members)
        version = shelf.register(stack)
        versions[version] = load_version(shelf.name, version, stack, base)
    shelf.promote(1)
    return Site(recipe, shelf, versions)


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all; starting takes most of the time."""
    with running(site.recipe, tmp_path_factory.mktemp("server")) as server:
        server.wait_for(ready=True)
        yield server
    log = server.log.read_text()
    assert f"serving at {server.url}/v1" in log
    assert "ERROR" not in log
    assert "raylet" not in log
    assert "Traceback" not in log


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def metric(server: Running, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not condition():
            await asyncio.sleep(0.05)


def test_openais_client_is_answered(site: Site, server: Running, client: openai.OpenAI) -> None:
    name, served, prompt = site.shelf.name, site.versions[1], PROMPTS[0]
    assert server.health()["champion"] == {"model": name, "version": 1, "digest": served.digest, "requests": ["a"]}
    assert [model.id for model in client.models.list()] == [name]

    whole = client.completions.create(model=name, prompt=prompt, temperature=0, max_tokens=TOKENS)
    assert whole.choices[0].text.strip() == site.alone(1, prompt)
    assert whole.system_fingerprint == served.fingerprint
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(served.reader.written(prompt))

    chunks = list(client.completions.create(model=name, prompt=prompt, temperature=0, max_tokens=TOKENS, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason

    said: Any = [{"role": "user", "content": QUESTION}]
    telling = {"grun": {"telemetry": True}}
    chat = client.chat.completions.create(
        model=name, messages=said, temperature=0, max_completion_tokens=TOKENS, extra_body=telling
    )
    assert str(chat.choices[0].message.content).strip() == site.alone(1, prompt)
    gates: Any = chat.choices[0].model_extra
    assert [(gate["request_id"], gate["layer"], gate["open"]) for gate in gates["grun"]["gates"]] == [
        ("a", 1, True),
        ("a", 3, True),
    ]
    parts = list(
        client.chat.completions.create(
            model=name, messages=said, temperature=0, max_tokens=TOKENS, stream=True, stream_options={"include_usage": True}
        )
    )
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == chat.choices[0].message.content
    assert parts[-1].choices == []
    assert parts[-1].usage == chat.usage


def test_openais_client_understands_what_is_refused(site: Site, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt=PROMPTS[0])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=site.shelf.name, prompt=PROMPTS[0], echo=True)
    assert (wrong.value.param, wrong.value.type) == ("echo", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=site.shelf.name, prompt=PROMPTS[0], max_tokens=1000)
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"Content-Length: 10000000000\r\n", b"", 413),
        (b"Transfer-Encoding: chunked\r\n", b"100001\r\n" + b"a" * (2**20 + 1) + b"\r\n", 413),
        (b"Content-Length: 50\r\n", b"{", 408),
    ],
    ids=["announced", "not announced", "slow"],
)
def test_a_body_that_is_too_large_or_too_slow_is_refused_before_its_end(
    server: Running, head: bytes, body: bytes, status: int
) -> None:
    async def scenario() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n" + body)
        await writer.drain()
        async with asyncio.timeout(START_SECONDS):
            line = (await reader.readline()).decode()
        writer.close()
        return line

    assert f" {status} " in asyncio.run(scenario())


def test_a_client_that_goes_away_frees_its_places(site: Site, server: Running) -> None:
    async def scenario() -> None:
        before = metric(server, "grun_prompts_read_total")
        rows = 16 * len(PROMPTS) * 4
        body = {"model": site.shelf.name, "prompt": [*PROMPTS] * 4, "n": 16, "max_tokens": 100, "stream": True}
        async with httpx.AsyncClient(timeout=60) as client:
            async with client.stream("POST", f"{server.url}/v1/completions", json=body) as stream:
                assert stream.status_code == 200
                async for line in stream.aiter_lines():
                    assert line.startswith("data: ")
                    break
            other = await client.post(
                f"{server.url}/v1/completions",
                json={"model": site.shelf.name, "prompt": PROMPTS[1], "temperature": 0, "max_tokens": TOKENS},
            )
        assert other.json()["choices"][0]["text"].strip() == site.alone(1, PROMPTS[1])
        await until(lambda: metric(server, "grun_rows_decoding") == metric(server, "grun_rows_waiting") == 0)
        assert metric(server, 'grun_requests_total{endpoint="completion",outcome="disconnected"}') == 1
        assert metric(server, "grun_prompts_read_total") < before + rows

    asyncio.run(scenario())


def test_twenty_swaps_under_load_fail_nobody_and_mix_nothing(site: Site, server: Running) -> None:
    expected = {(version, prompt): site.alone(version, prompt) for version in site.versions for prompt in PROMPTS}
    assert len({expected[version, PROMPTS[0]] for version in site.versions}) == len(site.versions), "versions must differ"
    answers: list[tuple[int, str, str]] = []
    failed: list[str] = []
    swapping = True

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        turn = number
        while swapping:
            turn += 1
            prompt = PROMPTS[turn % len(PROMPTS)]
            try:
                if turn % 2:
                    whole = await client.completions.create(
                        model=site.shelf.name, prompt=prompt, temperature=0, max_tokens=TOKENS
                    )
                    told: Any = whole.model_extra
                    texts, versions = whole.choices[0].text, {told["grun"]["version"]}
                else:
                    texts, versions = "", set()
                    async for chunk in await client.completions.create(
                        model=site.shelf.name, prompt=prompt, temperature=0, max_tokens=TOKENS, stream=True
                    ):
                        told = chunk.model_extra
                        texts += chunk.choices[0].text
                        versions.add(told["grun"]["version"])
                [version] = versions
                answers.append((version, prompt, texts.strip()))
            except (openai.OpenAIError, ValueError) as error:
                failed.append(repr(error))

    def is_past(count: int) -> bool:
        return len(answers) > count or bool(failed)

    async def swap() -> None:
        nonlocal swapping
        try:
            for turn in range(SWAPS):
                version = turn % 4 + 2 if turn % 4 < 3 else 1
                answered = len(answers)
                site.move_champion(version)
                await asyncio.to_thread(until_version, server, version)
                await until(partial(is_past, answered + CLIENTS))
        finally:
            swapping = False

    async def scenario() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            await asyncio.gather(swap(), *(ask(client, number) for number in range(CLIENTS)))

    swaps = metric(server, 'grun_swaps_total{outcome="done"}')
    asyncio.run(scenario())
    assert failed == []
    assert metric(server, 'grun_swaps_total{outcome="done"}') == swaps + SWAPS
    mixed = [(version, text) for version, prompt, text in answers if text != expected[version, prompt]]
    assert mixed == []
    assert {version for version, _prompt, _text in answers} == set(site.versions)
    assert len(answers) > SWAPS * CLIENTS


def until_version(server: Running, version: int) -> None:
    asyncio.run(until(lambda: (server.health()["champion"] or {}).get("version") == version))  # type: ignore[attr-defined]


def test_the_registry_may_go_and_come_back(site: Site, server: Running) -> None:
    site.move_champion(1)
    until_version(server, 1)
    database = site.recipe.output / "mlflow" / "mlflow.db"
    content = database.read_bytes()
    database.write_bytes(b"not a database" * 1000)  # in place: the server has the file open
    try:
        health = server.wait_for(registry_reachable=False, ready=True)
        assert "MLflow must be able to" in str(health["error"])
        answer = httpx.post(
            f"{server.url}/v1/completions", json={"model": site.shelf.name, "prompt": PROMPTS[0], "temperature": 0}
        )
        assert answer.json()["choices"][0]["text"].strip() == site.alone(1, PROMPTS[0])
        assert metric(server, "grun_registry_reachable") == 0
    finally:
        database.write_bytes(content)
    server.wait_for(registry_reachable=True, error=None)
    site.move_champion(2)
    until_version(server, 2)


def test_nothing_that_clients_write_is_logged(site: Site, server: Running) -> None:
    bodies: list[Any] = [
        {"model": site.shelf.name, "prompt": MARK},
        {"model": site.shelf.name, "prompt": MARK, "echo": True},
        {"model": MARK, "prompt": MARK},
        {"model": site.shelf.name, "prompt": [MARK, 3]},
        {"model": site.shelf.name, "prompt": MARK, "stream": True, "stop": MARK},
        {"model": site.shelf.name, "messages": [{"role": MARK, "content": MARK}]},
    ]
    for body in bodies:
        for path in ("completions", "chat/completions", MARK):
            httpx.post(f"{server.url}/v1/{path}", json=body, headers={"Authorization": f"Bearer {MARK}"}, timeout=60)
    httpx.post(f"{server.url}/v1/completions", content=f'{{"prompt": "{MARK}'.encode())
    logs = [path for path in server.ray_logs.rglob("*") if path.is_file()]
    assert any("serve" in str(path) for path in logs)
    assert [str(path) for path in [*logs, server.log] if MARK.encode() in path.read_bytes()] == []


def test_what_fails_is_said_on_the_servers_output_and_not_in_the_clients_words(
    make_recipe: Callable[..., Recipe], base_folder: Path, tmp_path: Path
) -> None:
    """A base that has no numbers for one token fails whoever writes it."""
    folder = shutil.copytree(base_folder, tmp_path / "base")
    damaged: Any = load_frozen_lm(str(folder))
    [broken] = damaged.tokenizer("z", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        damaged.model.get_input_embeddings().weight[broken] = torch.nan
    damaged.model.save_pretrained(folder)
    base = load_frozen_lm(str(folder))
    serving = {"batch_window_ms": 0, "max_new_tokens": 4}
    recipe = make_recipe(output=str(tmp_path / "outputs"), model={"path": str(folder)}, serving=serving)
    shelf = Shelf(Tracker.open(recipe.tracking, recipe.output), base, tmp_path / "made", recipe.registered_model)
    shelf.promote(shelf.register(shelf.stack([("a", 1)])))
    with running(recipe, tmp_path) as server:
        server.wait_for(ready=True)
        for prompt, status in ("az", 500), ("az", 500), ("a", 200):
            body = {"model": shelf.name, "prompt": prompt, "temperature": 1e-320}
            assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == status
    lines = [line for line in server.log.read_text().splitlines() if "failed" in line]
    assert lines == ["generating failed by numbers that are not finite, choosing tokens of 1 answer(s), the longest of 2 tokens"]


def test_without_its_registry_a_restart_serves_the_last_copy_to_those_with_the_key(
    site: Site, server: Running, tmp_path: Path
) -> None:
    """Runs last: it starts from what the server above has left on disk."""
    left = tmp_path / "outputs" / "serving"
    shutil.copytree(site.recipe.output / "serving", left)
    away = site.recipe.replace({"output": str(tmp_path / "outputs"), "tracking": {"uri": "http://127.0.0.1:9"}})
    key = "a key of this test"
    with running(away, tmp_path, key=key, ended_by=signal.SIGTERM) as restarted:
        restarted.wait_for(ready=True)
        assert set(restarted.health()) == {"live", "ready"}, "why, and what, is for those with the key"
        shown = {"Authorization": f"Bearer {key}"}
        health = httpx.get(f"{restarted.url}/healthz", headers=shown).json()
        assert (health["origin"], health["registry_reachable"], health["champion"]["version"]) == ("local copy", False, 2)
        body = json.dumps({"model": site.shelf.name, "prompt": PROMPTS[0], "temperature": 0})
        for headers, status in ({}, 401), ({"Authorization": "Bearer another"}, 401), (shown, 200):
            assert httpx.post(f"{restarted.url}/v1/completions", content=body, headers=headers).status_code == status
        answer = httpx.post(f"{restarted.url}/v1/completions", content=body, headers=shown)
        assert answer.json()["choices"][0]["text"].strip() == site.alone(2, PROMPTS[0])
    assert key not in restarted.log.read_text()
    assert "from the local copy" in restarted.log.read_text()
