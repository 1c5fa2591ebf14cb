"""What is not answered, in the shape that OpenAI's clients know: `{"error": {"message", "type", "param", "code"}}`."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["RefusedError", "context_exceeded", "invalid"]


@dataclass(eq=False)
class RefusedError(Exception):
    """A request that gets an error instead of an answer. Never holds any of its text."""

    status: int
    """HTTP status."""
    message: str
    """Rule, value, remedy."""
    kind: str = "invalid_request_error"
    """OpenAI's word for the class of the error."""
    param: str | None = None
    """Field of the body that is wrong."""
    code: str | None = None
    """OpenAI's word for the error, or ours."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers beside it."""

    def body(self) -> dict[str, Any]:
        """The response."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> RefusedError:
    """A mistake in the request."""
    return RefusedError(400, message, param=param, code=code)


def context_exceeded(context: int, prompt: int, wanted: int, param: str) -> RefusedError:
    """Prompt and answer do not fit the context of the base."""
    return invalid(
        f"prompt and answer must fit the context of {context} tokens, got {prompt} in the prompt and {wanted} asked for; "
        "shorten the prompt or lower `max_tokens`",
        param,
        "context_length_exceeded",
    )
