"""The local Ray cluster that is started where none is given."""

from pydantic import Field, PositiveInt

from grun.config.base import Config

__all__ = ["ClusterConfig"]


class ClusterConfig(Config):
    """Ray. With `RAY_ADDRESS` set, as under `ray job submit`, that cluster is used and these fields are not."""

    num_cpus: PositiveInt | None = None
    """CPUs of the local cluster; unset: the machine's cores."""
    object_store_mb: int = Field(default=200, ge=80)
    """Size of the local object store in MB."""
