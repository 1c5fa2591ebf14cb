"""How training runs: length, batch, optimizer, engine, workers."""

from typing import Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from grun.config.augmentation import AugmentationConfig
from grun.config.base import Config

__all__ = ["TrainConfig"]


class TrainConfig(Config):
    """Training of one adapter."""

    epochs: PositiveInt = 60
    """Passes over the forget set."""
    batch_size: PositiveInt = 16
    """Forget rows (and as many retain rows) per optimizer step, over all workers together."""
    learning_rate: PositiveFloat = 1e-3
    """Peak AdamW learning rate; decays linearly to zero."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from zero."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW weight decay; never applied to LoReFT's basis, which it would destroy."""
    grad_clip: PositiveFloat = 1.0
    """Largest global norm of the adapter's gradient."""
    pairing: Literal["resample", "fixed"] = "resample"
    """Whether a forget row meets a new retain row in every epoch or always the same one."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Other forms of the training questions."""
    num_workers: PositiveInt = 2
    """Ray Train workers."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`deepspeed` shards the frozen base; `torch` keeps a copy of it on every worker."""
    zero_stage: int = 3
    """ZeRO stage of the DeepSpeed engine: 3 shards the frozen base, 0 replicates it."""
    use_gpu: bool = False
    """One GPU per worker instead of one CPU."""
    cpus_per_worker: PositiveInt = 1
    """CPUs that Ray reserves for a worker."""
    length_buckets: PositiveInt = 4
    """Without a prefix cache: batches of similar length that the rows of a step are divided into, so that ragged rows cost less
    padding. A sharded base always gets one, as every batch would gather it anew. (From a cache, rows are packed without padding.)"""
    report_every: PositiveInt = 20
    """Steps between two reports to Ray: a checkpoint, a probe of the validation rows, a chance to be stopped."""
    probe_rows: PositiveInt = 64
    """Validation rows of each kind that a probe scores."""
    max_failures: NonNegativeInt = 2
    """How often a crashed worker group is started again from its last checkpoint."""

    @field_validator("zero_stage")
    @classmethod
    def _stage_shards_something(cls, stage: int) -> int:
        if stage in (1, 2):
            raise ValueError(
                f"ZeRO stages 1 and 2 shard optimizer states and gradients, which are only the adapter's few kilobytes here, got {stage}; "
                "use 3 (shards the frozen base) or 0 (replicates it)"
            )
        if stage not in (0, 3):
            raise ValueError(f"must be 0 or 3, got {stage}")
        return stage

    @model_validator(mode="after")
    def _workers_share_the_batch(self) -> Self:
        if self.batch_size % self.num_workers:
            raise ValueError(
                f"`batch_size` must be a multiple of `num_workers`, got {self.batch_size=}, {self.num_workers=}; "
                "the global batch stays the same for any number of workers, so it has to divide evenly"
            )
        return self
