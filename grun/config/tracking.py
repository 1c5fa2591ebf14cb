"""Where runs, metrics and models are recorded."""

from pydantic import Field

from grun.config.base import Config
from grun.config.ledger import MODEL_PATTERN

__all__ = ["TrackingConfig"]


class TrackingConfig(Config):
    """MLflow."""

    uri: str | None = None
    """Tracking server or database; unset: an SQLite file in the output folder."""
    experiment: str = "grun"
    """Experiment that runs are recorded in."""
    registered_model: str | None = Field(default=None, pattern=MODEL_PATTERN)
    """Name in the model registry; unset: `grun-` and the request's id."""
    keep_text: bool = False
    """Whether forget-set prompts and answers may appear in reports and artifacts."""
