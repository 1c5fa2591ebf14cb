"""The prefix cache: whether it is used, how large it may become, how it is built."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from grun.config.base import Config

__all__ = ["CacheConfig"]


class CacheConfig(Config):
    """What a frozen base computes again and again is computed once, and training runs on what is left."""

    mode: Literal["auto", "require", "off"] = "auto"
    """`auto`: use it, and say so where it cannot be used; `require`: stop instead; `off`: run the whole base."""
    max_gb: PositiveFloat = 50.0
    """Largest cache that may be built, in GB."""
    batch_size: PositiveInt = 32
    """Sequences per forward pass while it is built."""
    sequences_per_shard: PositiveInt = 256
    """Sequences per file: what an interrupted build loses at most, and what is shared out among tasks."""
