"""How the adapters of a stack act together where several of them edit the same block."""

from typing import Annotated, Literal

from pydantic import Field

from grun.config.base import Config

__all__ = ["CompositionConfig", "MaxGateConfig", "ScaledConfig", "SumConfig"]


class SumConfig(Config):
    """The edits are added; a stack of one is the adapter itself."""

    kind: Literal["sum"] = "sum"


class MaxGateConfig(Config):
    """At each block the edit of the most open gate alone; the earlier adapter where two are equal."""

    kind: Literal["max_gate"] = "max_gate"


class ScaledConfig(Config):
    """The sum times a N + b, N the number of adapters in the stack: the official rule for requests in sequence."""

    kind: Literal["scaled"] = "scaled"
    a: float = 0.6
    """What every adapter of the stack adds to the factor."""
    b: float = 0.6
    """What the factor starts from."""


CompositionConfig = Annotated[SumConfig | MaxGateConfig | ScaledConfig, Field(discriminator="kind")]
"""The compositions, told apart by `kind`."""
