"""Where runs, metrics and models are recorded."""

from pydantic import Field

from grun.config.base import MODEL_PATTERN, Config

__all__ = ["TrackingConfig"]


class TrackingConfig(Config):
    """MLflow."""

    uri: str | None = None
    """Tracking server or database; unset: an SQLite file in the output folder."""
    experiment: str = "grun"
    """Experiment that runs are recorded in."""
    patience_seconds: float = Field(default=300.0, ge=0.0)
    """How long a command that has begun its work waits for an MLflow that is away or fails; then it ends, and the same command goes
    on from what it left. Training waits for nothing, and a command that finds no server at its start is refused at once."""
    registered_model: str | None = Field(default=None, pattern=MODEL_PATTERN)
    """Name in the model registry; unset: `grun-` and the request's id."""
    keep_text: bool = False
    """Whether forget-set prompts and answers may appear in reports and artifacts."""
