"""What training minimises: a forget term, a retain term and the gate term (method.md, section 2.1)."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from grun.config.base import Config

__all__ = [
    "ForgetTermConfig",
    "GradDiffConfig",
    "IdkConfig",
    "NpoConfig",
    "ObjectiveConfig",
    "RetainCeConfig",
    "RetainHiddenConfig",
    "RetainKlConfig",
    "RetainTermConfig",
    "RmuConfig",
]


class GradDiffConfig(Config):
    """GD, gradient difference: minus the cross-entropy of the answers to forget."""

    kind: Literal["gd"] = "gd"
    weight: PositiveFloat = 1.0
    """Weight of the term."""


class NpoConfig(Config):
    """NPO, negative preference optimisation (arXiv:2404.05868): bounded, relative to the frozen model."""

    kind: Literal["npo"] = "npo"
    weight: PositiveFloat = 100.0
    """Weight of the term; the paper's setting is 100 (the usual full fine-tuning setting is 0.1375)."""
    beta: PositiveFloat = 0.1
    """Inverse temperature."""


class IdkConfig(Config):
    """IDK: cross-entropy of a refusal in place of the answer."""

    kind: Literal["idk"] = "idk"
    weight: PositiveFloat = 1.0
    """Weight of the term."""


class RmuConfig(Config):
    """RMU, representation misdirection (arXiv:2403.03218): push a hidden state towards a fixed random direction."""

    kind: Literal["rmu"] = "rmu"
    weight: PositiveFloat = 1.0
    """Weight of the term."""
    coefficient: PositiveFloat = 20.0
    """Length c of the target vector c u."""
    read_layer: NonNegativeInt | None = None
    """Block whose output is read; must not lie before the last intervened block. Unset: the last intervened block."""
    seed: NonNegativeInt = 0
    """Seed of the direction u."""


ForgetTermConfig = Annotated[GradDiffConfig | NpoConfig | IdkConfig | RmuConfig, Field(discriminator="kind")]
"""What is done with the forget set."""


class RetainCeConfig(Config):
    """Cross-entropy of the retain answers."""

    kind: Literal["ce"] = "ce"
    weight: NonNegativeFloat = 1.0
    """Weight of the term."""


class RetainKlConfig(Config):
    """KL(reference || current) on the retain answers, averaged over answer tokens; padding and prompt excluded."""

    kind: Literal["kl"] = "kl"
    weight: NonNegativeFloat = 1.0
    """Weight of the term."""


class RetainHiddenConfig(Config):
    """Squared distance between current and reference hidden states on the retain answers."""

    kind: Literal["hidden"] = "hidden"
    weight: NonNegativeFloat = 1.0
    """Weight of the term."""
    read_layer: NonNegativeInt | None = None
    """Block whose output is read; must not lie before the last intervened block. Unset: the last intervened block."""


RetainTermConfig = Annotated[RetainCeConfig | RetainKlConfig | RetainHiddenConfig, Field(discriminator="kind")]
"""What is done with the retain set."""


class ObjectiveConfig(Config):
    """w(step) * (forget + retain) + gate_weight * gate."""

    forget: ForgetTermConfig = IdkConfig()
    """The forget term."""
    retain: RetainTermConfig = RetainCeConfig()
    """The retain term."""
    gate_weight: NonNegativeFloat = 10.0
    """Weight of the gate term: binary cross-entropy, forget 1 and retain 0, from logits in float32."""
    gate_warmup_steps: NonNegativeInt = 0
    """Optimizer steps over which the forget and retain terms are faded in while the gate already learns; 0: none."""
