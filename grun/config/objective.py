"""What training minimises: a forget term, a retain term, the gate term, and a regulariser (method.md, sections 2.1 and 6.2-6.6).

Weights are ours, as a gate term stands beside them; where a source weighs its term otherwise, its docstring says how.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from grun.config.base import Config

__all__ = [
    "CeuConfig",
    "DpoConfig",
    "ForgetTermConfig",
    "GradDiffConfig",
    "IdkConfig",
    "InvarianceConfig",
    "NegativeConfig",
    "NpoConfig",
    "ObjectiveConfig",
    "RetainCeConfig",
    "RetainHiddenConfig",
    "RetainKlConfig",
    "RetainTermConfig",
    "RmuConfig",
    "SatImpConfig",
    "SimNpoConfig",
    "TnpoConfig",
    "UndialConfig",
    "WgaConfig",
    "WtnpoConfig",
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


class SimNpoConfig(Config):
    """SimNPO, simple NPO (arXiv:2410.07163): bounded, by the mean over an answer's tokens, without a reference."""

    kind: Literal["simnpo"] = "simnpo"
    weight: PositiveFloat = 1.0
    """Weight of the term; full fine-tuning takes 0.125 to 0.1375."""
    beta: PositiveFloat = 2.5
    """Inverse temperature. Published: 2.5 (with `gamma` 0), the default; open-unlearning takes 4.5."""
    gamma: NonNegativeFloat = 0.0
    """Margin in nats a token that an answer should be less likely by."""


class DpoConfig(Config):
    """DPO, direct preference optimisation (arXiv:2305.18290): prefer another answer to the one to forget."""

    kind: Literal["dpo"] = "dpo"
    weight: PositiveFloat = 1.0
    """Weight of the term."""
    beta: PositiveFloat = 0.1
    """Inverse temperature; open-unlearning takes 0.1, the default."""
    preferred: Literal["refusal", "alternative"] = "refusal"
    """The preferred answer: a refusal, or one of the record's `alternative_answers`; the latter is AltPO (arXiv:2409.13474)."""


class UndialConfig(Config):
    """UNDIAL (arXiv:2402.10052): learn the reference's own distribution with the logit of the true token lowered."""

    kind: Literal["undial"] = "undial"
    weight: PositiveFloat = 1.0
    """Weight of the term."""
    beta: PositiveFloat = 10.0
    """How far the logit is lowered; open-unlearning takes 10, the default."""


class WgaConfig(Config):
    """WGA, weighted gradient ascent (arXiv:2502.19301): GD with each token weighted by p^beta, so that it stops by itself."""

    kind: Literal["wga"] = "wga"
    weight: PositiveFloat = 1.0
    """Weight of the term."""
    beta: PositiveFloat = 1.0
    """Exponent of the probability. Published: 5; open-unlearning takes 1, the default."""


class TnpoConfig(Config):
    """TNPO, token-wise NPO (arXiv:2502.19301): each token against the reference's probability of it."""

    kind: Literal["tnpo"] = "tnpo"
    weight: PositiveFloat = 1.0
    """Weight of the term."""
    beta: PositiveFloat = 4.0
    """Inverse temperature. Published: 4, the default."""


class WtnpoConfig(Config):
    """WTNPO, weighted TNPO (arXiv:2502.19301): TNPO whose tokens are weighted by p^alpha on top."""

    kind: Literal["wtnpo"] = "wtnpo"
    weight: PositiveFloat = 1.0
    """Weight of the term."""
    beta: PositiveFloat = 4.0
    """Inverse temperature. Published: 4, the default."""
    alpha: PositiveFloat = 1.5
    """Exponent of the further weight. Published: 1.5, the default."""


class SatImpConfig(Config):
    """SatImp (arXiv:2505.11953): GD with each token weighted by its saturation p^beta1 and its importance (1 - p)^beta2."""

    kind: Literal["satimp"] = "satimp"
    weight: PositiveFloat = 1.0
    """Weight of the term."""
    beta1: NonNegativeFloat = 5.0
    """Exponent of the saturation; 0 leaves it out. Published: 5, the default."""
    beta2: NonNegativeFloat = 0.1
    """Exponent of the importance; 0 leaves it out. Published: 0.1, the default; open-unlearning takes 1."""


class CeuConfig(Config):
    """CE-U (arXiv:2503.01224): learn the model's own distribution without the true token. No settings but its weight."""

    kind: Literal["ceu"] = "ceu"
    weight: PositiveFloat = 1.0
    """Weight of the term."""


class NegativeConfig(Config):
    """LUNE's negative answers (arXiv:2512.07375): cross-entropy of an alternative answer in place of the true one.

    Every record to forget must bring `alternative_answers`, of which the seed draws one.
    """

    kind: Literal["negative"] = "negative"
    weight: PositiveFloat = 1.0
    """Weight of the term."""


ForgetTermConfig = Annotated[
    GradDiffConfig
    | NpoConfig
    | SimNpoConfig
    | IdkConfig
    | DpoConfig
    | NegativeConfig
    | RmuConfig
    | UndialConfig
    | WgaConfig
    | TnpoConfig
    | WtnpoConfig
    | SatImpConfig
    | CeuConfig,
    Field(discriminator="kind"),
]
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


class InvarianceConfig(Config):
    """ILU, invariance for unlearning (arXiv:2506.01339): let further tuning on ordinary data not pull at the adapter.

    Adds the squared gradient of each environment's cross-entropy with respect to a dummy w = 1, summed over environments.
    """

    weight: PositiveFloat = 0.1
    """Weight of the penalty. Reported: about 0.05 regularises too little, above 0.1 costs forgetting. Readings differ in scale."""
    reading: Literal["logits", "parameters"] = "logits"
    """What w multiplies, a choice that the paper leaves open. `logits`: one number, on all logits; costs next to nothing.
    `parameters`: each of the adapter's parameters; differentiates twice, so the base must be whole on every worker."""
    path: str | None = None
    """JSONL file of records that have nothing to do with the request, an environment beside the retain rows; unset: these alone."""


class ObjectiveConfig(Config):
    """w(step) * (forget + retain + invariance) + gate_weight * gate."""

    forget: ForgetTermConfig = IdkConfig()
    """The forget term."""
    retain: RetainTermConfig = RetainCeConfig()
    """The retain term."""
    invariance: InvarianceConfig | None = None
    """The regulariser of ILU, on top of any forget term; unset: none."""
    gate_weight: NonNegativeFloat = 10.0
    """Weight of the gate term: binary cross-entropy, forget 1 and retain 0, from logits in float32."""
    gate_warmup_steps: NonNegativeInt = 0
    """Optimizer steps over which all but the gate term is faded in while the gate already learns; 0: none."""
