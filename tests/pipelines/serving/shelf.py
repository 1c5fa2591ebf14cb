"""A registry with versions that answer differently, made without training: drawn edits behind gates that are open or shut."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from grun.adapters import AdapterCard, save_adapter, save_stack
from grun.config import AdapterConfig, LinearGateConfig, SumConfig
from grun.interventions import build_adapter
from grun.lm import FrozenLM
from pipelines.registry import CHAMPION, Registry, Verdict
from pipelines.tracking import Tracker

LAYERS = (1, 3)


def write_adapter(folder: Path, lm: FrozenLM, request_id: str, seed: int, *, gates: float = 30.0, threshold: float = 0.5) -> Path:
    """Write an adapter whose gates are open (`gates` above 0), shut (below), or decide by the prompt (0)."""
    config = AdapterConfig(layers=LAYERS, rank=4, gate=LinearGateConfig(), gate_threshold=threshold)
    adapter = build_adapter(config, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, weights in adapter.named_parameters():
            if "learned_source" in name:
                nn.init.normal_(weights, std=3.0)
            elif name.endswith("gate.linear.bias"):
                nn.init.constant_(weights, gates)
    card = AdapterCard(
        adapter=config,
        hidden_size=lm.hidden_size,
        num_layers=lm.num_layers,
        base_name=lm.info.name,
        base_digest=lm.info.digest,
        base_pad_token=None,
        request_ids=(request_id,),
    )
    return save_adapter(adapter, card, folder)


class Shelf:
    """Registers and promotes versions of one model."""

    def __init__(self, tracker: Tracker, lm: FrozenLM, folder: Path, name: str) -> None:
        self.tracker, self.lm, self.folder, self.name = tracker, lm, folder, name
        self.registry = Registry(tracker)

    def adapter(self, request_id: str, seed: int, *, gates: float = 30.0) -> Path:
        return write_adapter(self.folder / f"{request_id}-{seed}", self.lm, request_id, seed, gates=gates)

    def stack(self, members: Sequence[tuple[str, int]], *, gates: float = 30.0) -> Path:
        folders = [(request_id, self.adapter(request_id, seed, gates=gates)) for request_id, seed in members]
        return save_stack(folders, SumConfig(), self.folder / "-".join(f"{r}.{s}" for r, s in members))

    def register(self, folder: Path) -> int:
        return self.registry.register_candidate(self.name, self.tracker.start_run("train"), folder, self.lm.info)

    def promote(self, version: int) -> int:
        with self.registry.promotion_lock(self.name, "alice") as lease:
            champion = self.registry.version_of(self.name, CHAMPION)
            self.registry.promote(lease, version, Verdict("promote"), expected_champion=champion)
        return version

    def file_of(self, version: int, inside: str) -> Path:
        """Where the store keeps a file of a version."""
        location = self.tracker.client.get_model_version_download_uri(self.name, str(version))
        return Path(location.removeprefix("file://").replace("%20", " ")) / inside
