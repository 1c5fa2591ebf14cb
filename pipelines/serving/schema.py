"""What a client may send: OpenAI's completions and chat completions, as far as they are served.

Fields that we do not know are left alone, as clients send many. Fields that we know, and that would change the answer
if they were served, are refused unless they ask for nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from grun.config.base import rule_of
from grun.reading import DoubleKeyError, MalformedError, parse_json
from pipelines.serving.refusals import RefusedError, invalid

__all__ = ["ChatRequest", "CompletionRequest", "Message", "SharedFields", "parse_body"]

_Unsigned64 = Annotated[int, Field(ge=-(2**63), lt=2**64)]
_Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]

_MAX_CHOICES = 128

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
}
"""Fields that are not served, and the values with which they ask for nothing."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class _StreamOptions(_Body):
    include_usage: bool = False


class _Own(_Body):
    telemetry: bool = False
    """Whether each choice comes with what the gates said."""


class SharedFields(_Body):
    """What completions and chat completions have in common."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """OpenAI's default; 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: _Unsigned64 | None = None
    """The same seed and request give the same answer, whatever else is in the batch."""
    stop: tuple[_Stop, ...] = Field(default=(), max_length=4)
    n: Annotated[int, Field(ge=1, le=_MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    grun: _Own = _Own()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        """A null is a field that was not sent."""
        return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class CompletionRequest(SharedFields):
    """The body of `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    """Texts, taken as they are written, or token ids."""

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several prompts, as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class _Part(_Body):
    type: Literal["text"]
    text: str


class Message(_Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    @property
    def text(self) -> str:
        """Its parts together."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SharedFields):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("`max_tokens` and `max_completion_tokens` must not contradict each other; send one")
        return self


T = TypeVar("T", bound=SharedFields)


def parse_body(body: bytes, schema: type[T]) -> T:
    """Read a body.

    Raises:
        RefusedError: 400, with the first thing that is wrong; values are not repeated, as they may be text of the prompt.
    """
    if not body.strip():
        raise invalid("the body must be JSON in UTF-8, got an empty one; send the fields of a request")
    try:
        values = parse_json(body)
    except DoubleKeyError as error:
        # any other key is the client's text
        key = f"`{error.key}`" if error.key in schema.model_fields else "a key"
        raise invalid(f"the body must have each key once in an object, got {key} twice; leave one") from None
    except MalformedError as error:
        raise invalid(f"the body must be JSON in UTF-8, got other text ({error}); check how it is written") from None
    if not isinstance(values, dict):
        raise invalid(f"the body must be a JSON object, got a {_json_type(values)}; send the fields of a request")
    for name, neutral in _NEUTRAL.items():
        if name in values and not any(
            type(values[name]) is type(value) and values[name] == value for value in _with_floats(neutral)
        ):
            raise invalid(f"`{name}` is not served, got a value for it; leave it out", name, "unsupported_parameter")
    if values.get("best_of") not in (None, values.get("n") or 1):
        raise invalid(
            "`best_of` is served where it equals `n`, got another value; leave it out", "best_of", "unsupported_parameter"
        )
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from None


def _with_floats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*values, *(float(value) for value in values if type(value) is int))


def _json_type(value: Any) -> str:
    return {list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _explain(error: ValidationError) -> RefusedError:
    """The first error; where a union has several, they are of one field, and its name says enough."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = str(first["loc"][0]) if first["loc"] else None
    if param is None:
        return invalid(first["msg"].removeprefix("Value error, "))
    if first["type"] == "missing":
        return invalid(f"`{_path(first['loc'])}` must be given, got none; add it", param)
    if param == "prompt":
        return invalid("`prompt` must be a text, a list of texts, token ids or a list of token ids, got something else", param)
    if "content" in first["loc"]:  # one of two kinds, and the errors of both
        path = _path(first["loc"][: first["loc"].index("content") + 1])
        return invalid(f"`{path}` must be a text or a list of parts of type `text`, got something else; send text alone", param)
    return invalid(f"`{_path(first['loc'])}` {rule_of(first)}, got something else; change it", param)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location))
