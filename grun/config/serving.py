"""How the champion is served."""

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from grun.config.base import MODEL_PATTERN, Config

__all__ = ["ServingConfig"]


class ServingConfig(Config):
    """The server of the registry's champion. With `GRUN_API_KEY` set, clients have to show that key."""

    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach is refused without `GRUN_API_KEY`."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    registered_model: str | None = Field(default=None, pattern=MODEL_PATTERN)
    """Name in the model registry; unset: the ledger's model if it has a champion when the server starts, else the request's own."""
    poll_seconds: PositiveFloat = 5.0
    """How often the registry is asked whether the champion moved."""
    use_gpu: bool = False
    """Whether the base computes on a GPU."""
    num_cpus: PositiveInt = 1
    """CPUs that Ray reserves for the server's replica, and threads that the base computes with."""
    batch_size: PositiveInt = 32
    """Answers that are generated together; a request for several counts as several."""
    batch_window_ms: NonNegativeInt = 10
    """How long a prompt may wait for others, so that they are read together."""
    max_waiting: PositiveInt = 256
    """Answers that may wait for a place in the batch; beyond it requests are turned away with 429."""
    max_new_tokens: PositiveInt = 256
    """Tokens of an answer where the client names no limit; less where the context ends sooner."""
    max_body_bytes: PositiveInt = 1_048_576
    """Largest body of a request."""
    body_seconds: PositiveFloat = 10.0
    """How long a client may take to send its body, before 408."""
    request_seconds: PositiveFloat = 120.0
    """How long a request may wait and generate, before 504."""
