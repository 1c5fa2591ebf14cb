"""How an adapter is judged, and what it has to reach to be promoted."""

from typing import Literal

from pydantic import Field, PositiveInt

from grun.config.base import Config

__all__ = ["EvaluationConfig", "PromotionConfig"]


class EvaluationConfig(Config):
    """Scoring of one adapter."""

    batch_size: PositiveInt = 32
    """Sequences per forward pass."""
    max_new_tokens: PositiveInt = 48
    """Longest generated answer in tokens."""
    part: Literal["all", "validation", "test"] = "all"
    """Which rows: everything, or one of the two halves told apart by content hash. Sweeps choose on `validation`, promotion judges on `test`."""
    max_rows: PositiveInt | None = None
    """Rows per set, the first by content hash; unset: all."""
    num_cpus: PositiveInt = 1
    """CPUs that Ray reserves for an evaluation task."""
    use_gpu: bool = False
    """Whether an evaluation task takes one GPU."""
    retain_logs: str | None = None
    """File of retain-only logs that `prepare` wrote where the retain-only model is; it stands in for `model.retain_path`."""
    require: tuple[str, ...] = ()
    """Metrics that the report must have, for instance `forget_quality`; a run that cannot compute one stops before it trains."""
    multiple_choice: str | None = None
    """File of multiple-choice questions about what is to be forgotten, in WMDP's layout (`question`, `choices`, `answer`); on a cluster, on storage that every node sees at the same path. Sweeps do not ask them."""


class PromotionConfig(Config):
    """The policy: forgotten enough and not damaged, and not worse than the incumbent."""

    max_forget_rouge: float = Field(default=0.15, ge=0, le=1)
    """Highest ROUGE-L recall on forget prompts that training never saw."""
    min_utility_ratio: float = Field(default=0.98, ge=0)
    """Lowest model utility as a share of the base model's."""
    min_gate_auroc: float = Field(default=0.99, ge=0, le=1)
    """Lowest area under the ROC curve of the gate, forget prompts against held-out ordinary ones."""
    max_false_open_rate: float = Field(default=0.05, ge=0, le=1)
    """Highest share of held-out ordinary prompts at which a gate opens."""
    require_certificate: bool = True
    """Whether a candidate needs a utility certificate that holds (section `calibration`)."""
    incumbent_tolerance: float = Field(default=0.02, ge=0)
    """How much worse than the champion a candidate may be in forgetting or utility ratio and still replace it."""
    lock_lease_seconds: PositiveInt = 3600
    """After this long a promotion lock whose owner vanished may be taken over."""
