"""Two servers for the benchmark `serve`: the base alone and the champion, in replicas of the same kind behind one proxy."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from grun.adapters import AdapterCard, save_adapter, save_stack
from grun.config import PromptConfig, Recipe, SumConfig
from grun.interventions import build_adapter
from grun.lm import FrozenLM, IntervenedLM, load_frozen_lm
from pipelines.benchmarks.servers import free_port
from pipelines.cluster import connected
from pipelines.registry import CHAMPION, Registry, Verdict
from pipelines.serving.api import build_api
from pipelines.serving.app import LOGGING, deployment_of, end, listen, start_service
from pipelines.serving.champion import Champion, Found
from pipelines.serving.loading import Served
from pipelines.serving.prompts import PromptReader
from pipelines.tracking import Tracker

__all__ = ["BASE", "Servers", "serving"]

BASE = "base"
"""Name of the model that is the base alone."""


@dataclass(frozen=True)
class Servers:
    """What listens."""

    urls: dict[str, str]
    """By way, `base` and `champion`."""
    models: dict[str, str]
    """What to ask each for."""
    versions: Sequence[int]
    """Versions of the champion that it can be swapped between; the first answers."""
    tracker: Tracker
    name: str

    def move_champion(self, version: int) -> None:
        """Point the alias at a version."""
        self.tracker.client.set_registered_model_alias(self.name, CHAMPION, str(version))


class _BaseAlone:
    """A source whose champion is the base without adapters."""

    def look(self) -> Champion:
        """It never moves."""
        return Champion(BASE, 0)

    def fetch(self, champion: Champion) -> Found:
        """There are no files."""
        return Found(champion, Path())


@serve.deployment
@serve.ingress()
class _BaseServer:
    """The base alone, served as a champion is."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        config = Recipe.parse(recipe)

        def load(found: Found) -> Served:
            lm = load_frozen_lm(str(config.model.path))
            reader = PromptReader(lm.tokenizer, PromptConfig(), context=lm.context)
            return Served(found.champion.name, 0, lm.info.digest, IntervenedLM(lm), reader, (), (), ())

        self._service = start_service(config.serving, _BaseAlone(), None, load)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._service, None)

    async def started(self) -> None:
        """Returns once it is ready."""
        await asyncio.to_thread(self._service.follower.looked.wait)


@contextmanager
def serving(recipe: Recipe, lm: FrozenLM, folder: Path, stack_sizes: Sequence[int]) -> Iterator[Servers]:
    """Register untrained stacks of these sizes, and serve the first of them beside the base alone."""
    base = folder / "base"
    lm.model.save_pretrained(base)
    lm.tokenizer.save_pretrained(base)
    on_disk = load_frozen_lm(str(base))
    port = free_port()
    recipe = recipe.replace(
        {"output": str(folder), "model": {"path": str(base)}, "serving": {"port": port}, "cluster": {"num_cpus": 2}}
    )
    tracker = Tracker.open(recipe.tracking, recipe.output)
    registry = Registry(tracker)
    versions = [
        registry.register_candidate(
            recipe.ledger_model, tracker.start_run("train"), _write_stack(recipe, on_disk, folder, size), on_disk.info
        )
        for size in stack_sizes
    ]
    with registry.promotion_lock(recipe.ledger_model, "benchmark") as lease:
        champion = registry.version_of(recipe.ledger_model, CHAMPION)
        if champion != versions[0]:
            registry.promote(lease, versions[0], Verdict("promote"), expected_champion=champion)
    with connected(recipe):
        listen("127.0.0.1", port)
        server: Any = _BaseServer
        alone = server.options(max_ongoing_requests=1000, logging_config=LOGGING).bind(recipe.model_dump(mode="json"))
        applications = {BASE: alone, "champion": deployment_of(recipe, needs_key=False)}
        try:
            for name, application in applications.items():
                handle: Any = serve.run(application, name=name, route_prefix=f"/{name}")
                handle.started.remote().result()
            yield Servers(
                {name: f"http://127.0.0.1:{port}/{name}" for name in applications},
                {BASE: BASE, "champion": recipe.ledger_model},
                versions,
                tracker,
                recipe.ledger_model,
            )
        finally:
            for name in applications:
                end(name)


def _write_stack(recipe: Recipe, lm: FrozenLM, folder: Path, size: int) -> Path:
    members = []
    for number in range(size):
        adapter = build_adapter(recipe.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=number)
        card = AdapterCard(
            adapter=recipe.adapter.model_copy(update={"layers": adapter.layers, "gate_threshold": 0.5}),
            hidden_size=lm.hidden_size,
            num_layers=lm.num_layers,
            base_name=lm.info.name,
            base_digest=lm.info.digest,
            request_ids=(f"request-{number}",),
        )
        members.append((f"request-{number}", save_adapter(adapter, card, folder / "adapters" / str(number))))
    return save_stack(members, SumConfig(), folder / f"stack-{size}")
