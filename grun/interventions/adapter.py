"""The adapter: one gated intervention per edited block. The only thing that is ever trained or saved."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from grun.config import AdapterConfig
from grun.errors import ConfigError
from grun.gates import build_gate
from grun.interventions.gated import GatedIntervention
from grun.interventions.loreft import NO_DECAY, LoReFT

__all__ = ["Adapter", "build_adapter", "check_fits"]


class Adapter(nn.Module):
    """Gated interventions by decoder block, shallowest first."""

    idle_at_start: frozenset[str] = frozenset()
    """Parameters without a gradient in the first step: none."""

    def __init__(self, interventions: dict[int, GatedIntervention]) -> None:
        super().__init__()
        self.layers = tuple(sorted(interventions))
        self.interventions = nn.ModuleDict({str(layer): interventions[layer] for layer in self.layers})

    def at(self, layer: int) -> GatedIntervention:
        """The intervention of a block."""
        return cast(GatedIntervention, self.interventions[str(layer)])

    def __iter__(self) -> Iterator[tuple[int, GatedIntervention]]:
        return ((layer, self.at(layer)) for layer in self.layers)

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden states it edits."""
        return self.at(self.layers[0]).intervention.hidden_size

    @property
    def gated_layers(self) -> tuple[int, ...]:
        """The blocks whose edit has a gate: all of them, or none."""
        return tuple(layer for layer, gated in self if gated.gate.learns)

    def opened(self, gate_logits: Tensor, threshold: float | None) -> Tensor | None:
        """Return (B,) where a gate reaches the threshold, from gate logits (B, L) of the gated blocks; None: gates are soft."""
        return None if threshold is None else (gate_logits.sigmoid() >= threshold).any(-1)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Parameters for an optimizer: LoReFT's basis in a group of its own that is never decayed."""
        named = list(self.named_parameters())
        return [
            {"params": [p for name, p in named if NO_DECAY not in name], "weight_decay": weight_decay},
            {"params": [p for name, p in named if NO_DECAY in name], "weight_decay": 0.0},
        ]


def build_adapter(config: AdapterConfig, *, hidden_size: int, num_layers: int, seed: int) -> Adapter:
    """Build an untrained adapter for a base of `num_layers` blocks of width `hidden_size`, deterministic by seed.

    Raises:
        ConfigError: a layer outside the model, or a rank above the hidden size.
    """
    layers = check_fits(config, hidden_size=hidden_size, num_layers=num_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adapter(
            {layer: GatedIntervention(build_gate(config.gate, hidden_size), LoReFT(hidden_size, config.rank)) for layer in layers}
        )


def check_fits(config: AdapterConfig, *, hidden_size: int, num_layers: int) -> Sequence[int]:
    """Return the resolved layers of an adapter that fits a base of this shape.

    Raises:
        ConfigError: a layer outside the model, or a rank above the hidden size.
    """
    layers = config.resolve_layers(num_layers)
    outside = [layer for layer in layers if layer >= num_layers]
    if outside:
        raise ConfigError(
            f"`adapter.layers` must lie in 0..{num_layers - 1}, the blocks of this base, got {outside}; "
            "name other blocks, or use `adapter.relative_depths`"
        )
    if config.rank > hidden_size:
        raise ConfigError(
            f"`adapter.rank` must not exceed the hidden size, got rank {config.rank} and hidden size {hidden_size}; lower the rank"
        )
    return layers
