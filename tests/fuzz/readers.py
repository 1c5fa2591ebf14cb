"""Every reader that takes bytes from outside, once: what the fast tests and the long runs feed.

A reader is the product's own function behind the bytes of one file or body. What lies beside them is in order, and digests over
them are made to fit, so that a case gets as far as somebody who means it would. It returns where the bytes are accepted; our own
errors, and statuses of 400 to 499, say that they are refused; anything else is a bug.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

__all__ = ["CORPUS", "READERS", "Reader", "RefusedStatusError", "seeds"]

CORPUS = Path(__file__).parent / "corpus"

Format = Literal["json", "jsonl", "yaml", "safetensors", "zip", "ledger", "http"]


class RefusedStatusError(Exception):
    """An HTTP body was refused as it should be."""


@dataclass(frozen=True)
class Reader:
    """One reader."""

    name: str
    format: Format
    """How its bytes are put together, for mutations that keep them so."""
    read: Callable[[bytes], None]


@cache
def scratch() -> Path:
    """A folder in memory where there is one; gone with the process."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="grun-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    _kept.append(folder)
    return Path(folder.name)


_kept: list[object] = []


def put(name: str, data: bytes) -> Path:
    """Write a file of the scratch folder."""
    path = scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def good(reader: str) -> bytes:
    """A seed of a reader that is in order; `good.*` before its variants."""
    paths = [path for path in (CORPUS / reader).iterdir() if path.name.startswith("good")]
    return min(paths, key=lambda path: (not path.name.startswith("good."), path.name)).read_bytes()


def seeds(reader: str) -> list[bytes]:
    """All seeds of a reader."""
    return [path.read_bytes() for path in sorted((CORPUS / reader).iterdir())]


# what follows is in the order of the requirement; modules that load torch are imported where they are needed


def read_records(data: bytes) -> None:
    from grun.data.records import digest_records, read_jsonl

    records = read_jsonl(put("records.jsonl", data))
    digest_records(records)
    _ = [(record.key, record.digest) for record in records]


def read_questions(data: bytes) -> None:
    from grun.data.multiple_choice import digest_questions, read_multiple_choice

    digest_questions(read_multiple_choice(put("questions.jsonl", data)))


def read_scored_rows(data: bytes) -> None:
    from grun.evaluation.scores import read_rows

    _ = [(row.probability, row.base_nll_mean) for row in read_rows(put("rows.jsonl", data))]


def read_logs(data: bytes) -> None:
    from grun.evaluation.retain_logs import read_retain_logs

    read_retain_logs(put("logs.jsonl", data))


def read_report(data: bytes) -> None:
    from grun.evaluation.report import EvalReport

    EvalReport.load(put("report.json", data))


def read_recipe(data: bytes) -> None:
    from grun.config import Recipe, merge, read_recipe_file

    values = read_recipe_file(put("recipe.yaml", data))
    recipe = Recipe.parse(merge(Recipe().model_dump(mode="json"), values), where="the recipe")
    assert Recipe.parse(json.loads(recipe.model_dump_json())) == recipe


def read_request(data: bytes) -> None:
    from grun.config import RequestConfig
    from pipelines.ledger_verbs.add import _read

    _read(RequestConfig(id="r1", reason="asked"), str(put("request.jsonl", data)))


def read_adapter_config(data: bytes) -> None:
    _check_adapter(data, good("adapter_tensors"))


def read_adapter_tensors(data: bytes) -> None:
    # its certificate would be of other tensors
    card = json.loads(good("adapter_config")) | {"tensors_sha256": hashlib.sha256(data).hexdigest(), "certificate": None}
    _check_adapter(json.dumps(card).encode(), data)


def _check_adapter(config: bytes, tensors: bytes) -> None:
    from grun.adapters.folder import check_adapter, digest_adapter
    from grun.lm import BaseInfo

    folder = put("adapter/adapter_config.json", config).parent
    put("adapter/adapter.safetensors", tensors)
    check_adapter(folder, BaseInfo("tiny", None, "0" * 64), hidden_size=32, num_layers=4)
    digest_adapter(folder)


def read_stack(data: bytes) -> None:
    from grun.adapters.stack_folder import check_stack
    from grun.lm import BaseInfo

    for name in ("adapter_config", "adapter_tensors"):
        file = {"adapter_config": "adapter_config.json", "adapter_tensors": "adapter.safetensors"}[name]
        put(f"stack/adapters/01-r1/{file}", good(name))
    folder = put("stack/stack.json", data).parent
    check_stack(folder, BaseInfo("tiny", None, "0" * 64), hidden_size=32, num_layers=4)


def read_model_file(data: bytes) -> None:
    from pipelines.mlflow_flavor import load_adapter_folder

    load_adapter_folder(put_model("model", data))


def put_model(name: str, model_file: bytes) -> Path:
    """Write a registered model's folder, and return it."""
    put(f"{name}/adapter/adapter_config.json", good("adapter_config"))
    put(f"{name}/adapter/adapter.safetensors", good("adapter_tensors"))
    for other in ("requirements.txt", "python_env.yaml"):
        put(f"{name}/{other}", b"")
    return put(f"{name}/MLmodel", model_file).parent


def read_champion(data: bytes) -> None:
    from pipelines.serving.champion import LocalCopy

    put_model("served/m/v1", good("model_file"))
    LocalCopy(("m",), put("served/m/champion.json", data).parents[1]).find()


def read_official_config(data: bytes) -> None:
    _import_official(data, good("official_layer"))


def read_official_layer(data: bytes) -> None:
    _import_official(good("official_config"), data)


@cache
def _official_base() -> Any:
    """What importing asks of a base: its shape, and where it computes."""
    import torch

    from grun.lm import BaseInfo

    @dataclass
    class Base:
        info = BaseInfo("tiny", None, "0" * 64)
        hidden_size, num_layers, device = 32, 4, torch.device("cpu")

    return Base()


def _import_official(config: bytes, layer: bytes) -> None:
    from grun.adapters.official import import_official

    folder = put("official/config.json", config).parent
    put("official/intkey_layer.1.comp.block_output.unit.pos.nunit.1#0.bin", layer)
    import_official(folder, _official_base())


def read_cache_state(data: bytes) -> None:
    _open_cache(data, good("cache_index"), good("cache_shard"))


def read_cache_index(data: bytes) -> None:
    _open_cache(good("cache_state"), data, good("cache_shard"))


def read_cache_shard(data: bytes) -> None:
    index = json.loads(good("cache_index")) | {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": max(1, len(data))}
    _open_cache(good("cache_state"), json.dumps(index).encode(), data)


def _open_cache(state: bytes, index: bytes, shard: bytes) -> None:
    from grun.data.prompts import Example
    from grun.lm.prefix_cache import CachedRow, PrefixCache

    folder = put("cache/cache.json", state).parent
    put("cache/shard-00000.json", index)
    put("cache/shard-00000.safetensors", shard)
    cached = PrefixCache.open(folder)
    assert Example("", (1, 2), 1) not in cached
    for place in cached._by_sequence.values():  # its keys are digests of rows that nobody has here
        row = CachedRow(*place, answer_ids=(0,))
        for layer in range(cached.spec.cut + 1, cached.spec.num_layers):
            _ = [tensor.sum() for tensor in row.keys_values(layer)]
        _ = [row.states(layer).sum() for layer in cached.spec.state_layers]
        row.reference_nll.sum()


def read_export(data: bytes) -> None:
    from grun.ledger import parse_export, to_export

    assert to_export(parse_export(put("ledger.jsonl", data))).encode() == data


def read_completion(data: bytes) -> None:
    _post("/v1/completions", data)


def read_chat(data: bytes) -> None:
    _post("/v1/chat/completions", data)


def read_head(data: bytes) -> None:
    """Path, key, length and body, a line each."""
    path, key, length, *body = data.split(b"\n", 3)[:4] if data.count(b"\n") >= 3 else (b"/v1/models", data, b"0", b"")
    _post(path.decode("latin-1"), b"".join(body), authorization=key, content_length=length)


class _InstantEngine:
    """Stands in for the model, which is not what is fuzzed: every answer is one word."""

    is_alive, room = True, 288

    def __init__(self, served: object) -> None:
        self.served = served

    def check_room(self, count: int) -> None:
        from pipelines.serving.engine import Engine

        Engine.check_room(cast(Any, self), count)

    def submit(self, rows: Any) -> None:
        from pipelines.serving.rows import Event

        for row in rows:
            assert row.prompt
            row.generation.served = self.served
            row.generation.events.put_nowait(Event(row.choice, "word", "stop", 1))


@cache
def _server() -> tuple[Any, asyncio.AbstractEventLoop]:
    """The application, with the real schema, tokenizer and limits."""
    from types import SimpleNamespace

    from grun.config import PromptConfig, ServingConfig
    from pipelines.serving.api import build_api
    from pipelines.serving.follower import Status
    from pipelines.serving.loading import Served
    from pipelines.serving.metrics import Metrics
    from pipelines.serving.prompts import PromptReader
    from pipelines.serving.service import Service
    from tests.conftest import TEXTS, _tokenizer

    reader = PromptReader(_tokenizer(TEXTS, 320), PromptConfig(), context=128)
    served = Served("m", 1, "0" * 64, cast(Any, None), reader, ("r1",), (), ())
    follower = cast(Any, SimpleNamespace(status=Status()))
    service = Service(ServingConfig(), cast(Any, _InstantEngine(served)), follower, Metrics())
    return build_api(service, None), asyncio.new_event_loop()


def _post(path: str, body: bytes, *, authorization: bytes = b"", content_length: bytes | None = None) -> None:
    """Send a request to the application, without a network."""
    application, loop = _server()
    length = str(len(body)).encode() if content_length is None else content_length
    pages = path in ("/v1/models", "/metrics", "/healthz", "/healthz/live")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET" if pages else "POST",
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", length), (b"authorization", authorization)],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    statuses: list[int] = []
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not unread:
            await asyncio.Event().wait()  # the client stays
        return unread.pop()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    loop.run_until_complete(asyncio.wait_for(application(scope, receive, send), 10))
    [status] = statuses
    if 400 <= status < 500:
        raise RefusedStatusError(str(status))
    assert status == 200, f"status {status}"


READERS = {
    reader.name: reader
    for reader in (
        Reader("records", "jsonl", read_records),
        Reader("questions", "jsonl", read_questions),
        Reader("scored_rows", "jsonl", read_scored_rows),
        Reader("retain_logs", "jsonl", read_logs),
        Reader("report", "json", read_report),
        Reader("recipe", "yaml", read_recipe),
        Reader("request", "jsonl", read_request),
        Reader("adapter_config", "json", read_adapter_config),
        Reader("adapter_tensors", "safetensors", read_adapter_tensors),
        Reader("stack", "json", read_stack),
        Reader("model_file", "yaml", read_model_file),
        Reader("champion", "json", read_champion),
        Reader("official_config", "json", read_official_config),
        Reader("official_layer", "zip", read_official_layer),
        Reader("cache_state", "json", read_cache_state),
        Reader("cache_index", "json", read_cache_index),
        Reader("cache_shard", "safetensors", read_cache_shard),
        Reader("ledger_export", "ledger", read_export),
        Reader("completion", "json", read_completion),
        Reader("chat", "json", read_chat),
        Reader("http_head", "http", read_head),
    )
}
"""By name; the folder of the same name in the corpus holds its seeds."""
