"""The server as a user runs it: a process of its own on a local Ray, a real registry, and OpenAI's own client."""

from pathlib import Path
from typing import Any

import openai
import pytest

from grun.config import Recipe
from grun.lm import FrozenLM
from pipelines.serving.loading import Served, load_version
from tests.pipelines.serving.process import Running, running
from tests.pipelines.serving.shelf import Shelf

pytestmark = pytest.mark.slow

QUESTION = "Where does Ilva Torrent live?"
PROMPT = f"Question: {QUESTION}\nAnswer:"
KEY = "a key of this test"


@pytest.fixture
def quick(recipe: Recipe) -> Recipe:
    return recipe.replace({"serving": {"poll_seconds": 0.1, "batch_window_ms": 5, "max_new_tokens": 24, "batch_size": 16}})


def client_of(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def alone(served: Served, prompt: str, tokens: int = 24) -> str:
    """What a version says by itself."""
    return served.model.generate([served.reader.written(prompt)], max_new_tokens=tokens).texts[0]


def test_openais_client_is_answered(quick: Recipe, shelf: Shelf, base: FrozenLM, tmp_path: Path) -> None:
    folder = shelf.stack([("a", 1), ("b", 2)])
    shelf.promote(shelf.register(folder))
    served = load_version(shelf.name, 1, folder, base)
    with running(quick, tmp_path) as server:
        health = server.wait_for(ready=True)
        assert health["champion"] == {"model": shelf.name, "version": 1, "digest": served.digest, "requests": ["a", "b"]}
        client = client_of(server)
        assert [model.id for model in client.models.list()] == [shelf.name]

        whole = client.completions.create(model=shelf.name, prompt=PROMPT, temperature=0, max_tokens=24)
        assert whole.choices[0].text.strip() == alone(served, PROMPT)
        assert whole.system_fingerprint == served.fingerprint
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == len(served.reader.written(PROMPT))

        chunks = list(client.completions.create(model=shelf.name, prompt=PROMPT, temperature=0, max_tokens=24, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason

        said: Any = [{"role": "user", "content": QUESTION}]
        chat = client.chat.completions.create(
            model=shelf.name, messages=said, temperature=0, max_completion_tokens=24, extra_body={"grun": {"telemetry": True}}
        )
        assert str(chat.choices[0].message.content).strip() == alone(served, PROMPT)
        gates: Any = chat.choices[0].model_extra
        assert {(gate["request_id"], gate["layer"], gate["open"]) for gate in gates["grun"]["gates"]} == {
            (request_id, layer, True) for request_id in ("a", "b") for layer in (1, 3)
        }
        stream = client.chat.completions.create(
            model=shelf.name, messages=said, temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
        parts = list(stream)
        assert parts[0].choices[0].delta.role == "assistant"
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == chat.choices[0].message.content
        assert parts[-1].choices == []
        assert parts[-1].usage == chat.usage

        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="gpt-4", prompt=PROMPT)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.completions.create(model=shelf.name, prompt=PROMPT, echo=True)
        assert (wrong.value.param, wrong.value.type) == ("echo", "invalid_request_error")
    assert f"serving at {server.url}/v1" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
