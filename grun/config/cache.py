"""The prefix cache: whether it is used, how large it may become, how it is built."""

from pathlib import Path
from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from grun.config.base import Config, StorageUri

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
    uri: StorageUri | None = None
    """Where caches are shared, with other clusters too: `s3://bucket/folder`, `file:///folder`; unset: in `output`.

    Credentials come from the environment of every node (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, or the node's own role).
    """
    local: Path | None = None
    """Folder on each node for its copy of what it reads from `cache.uri`; unset: `grun-<user number>` in the node's temporary folder."""

    @model_validator(mode="after")
    def _local_copies_of_something(self) -> Self:
        if self.local is None:
            return self
        if self.uri is None:
            raise ValueError(
                f"`local` holds copies of what is at `uri`, got {str(self.local)!r} without a `uri`; set `cache.uri`"
            )
        if not self.local.is_absolute():
            raise ValueError(
                f"`local` must be an absolute path, as workers run elsewhere, got {str(self.local)!r}; begin it with a /"
            )
        return self
