"""The local Ray cluster that is started where none is given, and how long any cluster is waited for."""

from pydantic import Field, PositiveFloat, PositiveInt

from grun.config.base import Config

__all__ = ["ClusterConfig"]


class ClusterConfig(Config):
    """Ray. With `RAY_ADDRESS` set, as under `ray job submit`, that cluster is used, and its size is its own."""

    num_cpus: PositiveInt | None = None
    """CPUs of the local cluster; unset: the machine's cores."""
    object_store_mb: int = Field(default=200, ge=80)
    """Size of the local object store in MB."""
    hang_seconds: PositiveFloat = 600.0
    """Seconds after which a worker or a task whose process does not answer is killed and started again; a worker that answers, but
    finishes no training step, after three times as long: that must be more than the slowest step, with its probe, ever takes."""
