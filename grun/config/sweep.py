"""What Ray Tune varies, and how it searches."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from grun.config.base import Config

__all__ = ["SweepConfig"]


class SweepConfig(Config):
    """A sweep of one space around the recipe."""

    space: str = "joint"
    """Search space of `tune_spaces`: gate_threshold, layer_positions, reft_rank or joint."""
    num_trials: PositiveInt = 8
    """Trained trials; every gate threshold of the space is scored from each of them without training again."""
    searcher: Literal["optuna", "random"] = "optuna"
    """`optuna`: multi-objective TPE over forgetting and utility; `random`: independent draws."""
    scheduler: Literal["asha", "none"] = "asha"
    """`asha` stops trials whose probe falls behind; `none` trains all to the end."""
    grace_reports: PositiveInt = 2
    """Reports that every trial may make before ASHA can stop it."""
    reduction_factor: int = Field(default=3, ge=2)
    """ASHA keeps one of this many at each rung."""
    runner: Literal["slots", "nested"] = "slots"
    """`slots`: long-lived workers take one trial after another, with the base and the cache open; `nested`: every trial starts
    workers of its own. Both give the same adapters."""
    max_concurrent: PositiveInt | None = None
    """Trials at a time; unset: as many worker groups as the cluster's CPUs (or GPUs) hold when the sweep starts. Where it is set, nodes
    that join later are used up to it, and an autoscaler is asked for room for as many."""
    utility_weight: float = Field(default=1.0, ge=0)
    """The chosen point maximises `utility_weight` x min(utility ratio, 1) - forget ROUGE-L recall."""
    seed: NonNegativeInt = 0
    """Seed of the searcher."""
    max_failures: NonNegativeInt = 1
    """How often a crashed trial is run again."""
