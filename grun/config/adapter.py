"""The adapter: where it sits, how wide the edit is, what opens the gate."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from grun.config.base import Config

__all__ = ["AdapterConfig", "GateConfig", "LinearGateConfig", "Mlp3GateConfig", "Mlp5GateConfig", "NoGateConfig"]


class LinearGateConfig(Config):
    """One hyperplane: u(h) = w h + b."""

    kind: Literal["linear"] = "linear"


class Mlp3GateConfig(Config):
    """Three linear layers of widths d-256-64-1 with ReLU between them."""

    kind: Literal["mlp_3"] = "mlp_3"


class Mlp5GateConfig(Config):
    """Five linear layers of widths d-1024-512-256-64-1 with ReLU between them."""

    kind: Literal["mlp_5"] = "mlp_5"


class NoGateConfig(Config):
    """No gate, LoReFT as it was published: every prompt gets the whole edit, and no gate threshold does anything."""

    kind: Literal["none"] = "none"


GateConfig = Annotated[LinearGateConfig | Mlp3GateConfig | Mlp5GateConfig | NoGateConfig, Field(discriminator="kind")]
"""The three gates of the paper and none at all, told apart by `kind`."""

Depth = Annotated[float, Field(ge=0, lt=1)]


class AdapterConfig(Config):
    """Gated LoReFT interventions on the last prompt token at a few decoder blocks."""

    layers: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    """Decoder blocks whose output is edited, counted from 0, shallowest first; unset: `relative_depths`."""
    relative_depths: tuple[Depth, ...] = Field(default=(20 / 32, 25 / 32, 31 / 32), min_length=1)
    """The same as fractions of the number of blocks, so that one value fits every model; used where `layers` is unset."""
    rank: PositiveInt = 4
    """Rank of LoReFT."""
    gate: GateConfig = Mlp3GateConfig()
    """What decides, from the last prompt token, how much of the edit is applied; `none`: nothing does, it is all applied."""
    gate_threshold: float | None = Field(default=0.9, ge=0, le=1)
    """At inference a gate value below it counts as 0, so that a closed gate is the identity; unset: soft gates."""

    @model_validator(mode="after")
    def _layers_increase(self) -> Self:
        for name in ("layers", "relative_depths"):
            values = getattr(self, name)
            if values and any(a >= b for a, b in pairwise(values)):
                raise ValueError(f"`{name}` must be strictly increasing, got {values}; sort it and remove repeats")
        return self

    def resolve_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the block indices for a model of `num_layers` blocks (relative depths are rounded down)."""
        if self.layers is not None:
            return self.layers
        return tuple(sorted({int(depth * num_layers) for depth in self.relative_depths}))
