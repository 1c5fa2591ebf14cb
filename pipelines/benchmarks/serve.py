"""`serve`: throughput and latency of a served champion against the base alone, and while the champion moves.

Both are served by the same program, in replicas of one CPU behind the same proxy; clients ask for greedy answers of one
length, each its next as soon as it has the last. Costs are those of the replica, of which only one works at a time:
tokens per CPU second of its process, and beside it tokens per second on the clock.
"""

import asyncio
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from grun.data.records import QARecord
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, interleave, plain
from pipelines.benchmarks.serve_servers import BASE, Servers, serving
from pipelines.benchmarks.workload import Geometry, make_recipe, make_tokenizer, new_lm, read_rows

__all__ = ["percentile", "run"]

_CLIENTS = (1, 8, 32)
_STACKED = (6, 7)
_SWAPS = 4
_SWAPPING_CLIENTS = 8
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class _Load:
    """What clients saw, and what it took."""

    tokens: int
    """Generated for all of them."""
    cpu: float
    """CPU seconds of the replica."""
    wall: float
    """Seconds from the first request to the last answer."""
    latencies: Sequence[float]
    """Seconds of each request."""
    failed: int = 0
    """Requests without an answer."""

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.tokens / self.cpu

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.wall


def run(options: Options) -> Report:
    """Serve a stack of six untrained adapters, and ask it and the base alone by 1, 8 and 32 clients.

    Raises:
        DataError: TOFU is not where it should be.
    """
    geometry = Geometry.toy() if options.tiny else Geometry()
    recipe = make_recipe(options, "gd").replace({"serving": {"poll_seconds": 1.0}})
    splits = read_rows(options)
    lm = new_lm(geometry, make_tokenizer(splits, geometry))
    prompts = [f"Question: {record.question}\nAnswer:" for record in splits.forget if isinstance(record, QARecord)]
    new_tokens, requests = (8, 2) if options.tiny else (32, 3)
    rows: list[Row] = []
    with serving(recipe, lm, options.work / "serve", _STACKED) as servers:
        for clients in _CLIENTS:
            ways = {
                way: _asking(servers, way, prompts, clients, requests if clients > 1 else 2 * requests, new_tokens)
                for way in servers.urls
            }
            rows += _rows(clients, interleave(ways, options.repeats, title=f"asking, {clients} client(s)"))
        rows += _swap_rows(_swapping(servers, prompts, requests, new_tokens, options.repeats))
    title = f"Served champion, a stack of {_STACKED[0]}, over the base alone: {geometry.num_layers} blocks, {geometry.hidden_size} wide"
    workload = {"geometry": vars(geometry), "new_tokens": new_tokens, "requests_per_client": requests, "stack": _STACKED[0]}
    return Report(rows, ratio_figure(title, rows), workload)


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)]


def _rows(clients: int, samples: dict[str, list[_Load]]) -> list[Row]:
    base, champion = samples[BASE], samples["champion"]
    ratios = [ours.tokens_per_cpu_second / theirs.tokens_per_cpu_second for ours, theirs in zip(champion, base, strict=True)]
    walls = [ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in zip(champion, base, strict=True)]
    names = [f"serve.throughput_champion_over_base.clients_{clients}"]
    if clients == max(_CLIENTS):
        names.append("serve.throughput_champion_over_base")
    rows = [
        Row(
            name,
            statistics.median(load.tokens_per_cpu_second for load in champion),
            "tokens/s CPU",
            baseline=statistics.median(load.tokens_per_cpu_second for load in base),
            ratio=statistics.median(ratios),
            low=min(ratios),
            high=max(ratios),
            wall_ratio=statistics.median(walls),
        )
        for name in names
    ]
    for way, loads in samples.items():
        rates = [load.tokens_per_second for load in loads]
        rows.append(
            Row(
                f"serve.tokens_per_second.clients_{clients}.{way}",
                statistics.median(rates),
                "1/s",
                low=min(rates),
                high=max(rates),
            )
        )
        rows += _latencies(f"clients_{clients}.{way}", loads)
    return rows


def _latencies(name: str, loads: Sequence[_Load]) -> list[Row]:
    shares = {"median": 0.5, "p95": 0.95}
    each = {word: [percentile(load.latencies, share) for load in loads] for word, share in shares.items()}
    return [
        Row(f"serve.latency_{word}.{name}", statistics.median(values), "s", low=min(values), high=max(values))
        for word, values in each.items()
    ]


def _swapping(servers: Servers, prompts: Sequence[str], requests: int, new_tokens: int, repeats: int) -> dict[str, list[_Load]]:
    still = _asking(servers, "champion", prompts, _SWAPPING_CLIENTS, 4 * requests, new_tokens)
    swapped = _asking(servers, "champion", prompts, _SWAPPING_CLIENTS, 4 * requests, new_tokens, swaps=_SWAPS)
    return interleave({"still": still, "swapping": swapped}, repeats, title=f"asking while the champion moves {_SWAPS} times")


def _swap_rows(samples: dict[str, list[_Load]]) -> list[Row]:
    still, moving = samples["still"], samples["swapping"]
    p95 = [
        percentile(ours.latencies, 0.95) / percentile(theirs.latencies, 0.95) for ours, theirs in zip(moving, still, strict=True)
    ]
    return [
        Row(
            "serve.latency_p95_swapping_over_still",
            statistics.median(percentile(load.latencies, 0.95) for load in moving),
            "s",
            baseline=statistics.median(percentile(load.latencies, 0.95) for load in still),
            ratio=statistics.median(p95),
            low=min(p95),
            high=max(p95),
        ),
        *_latencies("swapping", moving),
        plain("serve.swaps", _SWAPS * len(moving), "swaps"),
        plain("serve.swaps_failed_requests", sum(load.failed for load in moving), "requests"),
    ]


def _asking(
    servers: Servers, way: str, prompts: Sequence[str], clients: int, requests: int, new_tokens: int, *, swaps: int = 0
) -> Callable[[int], _Load]:
    def ask(_repeat: int) -> _Load:
        return asyncio.run(_ask(servers, way, prompts, clients, requests, new_tokens, swaps))

    return ask


async def _ask(
    servers: Servers, way: str, prompts: Sequence[str], clients: int, requests: int, new_tokens: int, swaps: int
) -> _Load:
    url, latencies, tokens, failed = servers.urls[way], list[float](), 0, 0

    async def client(http: httpx.AsyncClient, number: int) -> None:
        nonlocal tokens, failed
        for turn in range(requests):
            body = {
                "model": servers.models[way],
                "prompt": prompts[(number * requests + turn) % len(prompts)],
                "max_tokens": new_tokens,
                "temperature": 0,
            }
            started = time.perf_counter()
            answer = await http.post(f"{url}/v1/completions", json=body)
            latencies.append(time.perf_counter() - started)
            if answer.status_code == 200:
                tokens += answer.json()["usage"]["completion_tokens"]
            else:
                failed += 1

    limits = httpx.Limits(max_connections=clients + 1)
    async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, limits=limits) as http:
        cpu, started = await _cpu_seconds(http, url), time.perf_counter()
        await asyncio.gather(_move(http, servers, swaps), *(client(http, number) for number in range(clients)))
        wall = time.perf_counter() - started
        return _Load(tokens, await _cpu_seconds(http, url) - cpu, wall, latencies, failed)


async def _move(http: httpx.AsyncClient, servers: Servers, swaps: int) -> None:
    """Move the champion to and fro, and wait each time until it answers."""
    for turn in range(swaps):
        version = servers.versions[(turn + 1) % 2]
        await asyncio.to_thread(servers.move_champion, version)
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            while (await _health(http, servers))["champion"]["version"] != version:
                await asyncio.sleep(0.1)


async def _health(http: httpx.AsyncClient, servers: Servers) -> Any:
    return (await http.get(f"{servers.urls['champion']}/healthz")).json()


async def _cpu_seconds(http: httpx.AsyncClient, url: str) -> float:
    page = (await http.get(f"{url}/metrics")).text
    found = re.search(r"^process_cpu_seconds_total (\S+)$", page, re.MULTILINE)
    assert found, "the server counts its process' CPU time"
    return float(found[1])
