"""The ledger of requests: what it is called, where its texts lie, how its adapters are put together."""

from pathlib import Path

from pydantic import Field, PositiveInt

from grun.config.base import NAME_PATTERN, Config
from grun.config.composition import CompositionConfig, SumConfig

__all__ = ["LedgerConfig"]


class LedgerConfig(Config):
    """Requests that are answered one after another, by a stack of adapters on one base."""

    name: str = Field(default="demo", pattern=NAME_PATTERN)
    """Name of the ledger; requests of the same ledger are served together."""
    vault: Path | None = None
    """Folder that keeps the text to be forgotten, readable by its owner alone; unset: `vault` in the output folder."""
    composition: CompositionConfig = SumConfig()
    """How the adapters of the stack act together."""
    lease_seconds: PositiveInt = 3600
    """After this long the lock of a worker that vanished may be taken over; it has to be enough for one request."""
