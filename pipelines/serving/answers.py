"""Responses in OpenAI's shape, whole or in chunks, for completions and for chat.

Beside OpenAI's fields, `system_fingerprint` and `grun` say which version answered; with telemetry, each choice has a
`grun` of its own with what the gates said about its prompt.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.serving.loading import Served
from pipelines.serving.rows import Event

__all__ = ["Answer", "Choice", "Style", "sse"]

Style = Literal["completion", "chat"]

_OBJECTS: Mapping[tuple[Style, bool], str] = {
    ("completion", False): "text_completion",
    ("completion", True): "text_completion",
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
}
_PREFIXES: Mapping[Style, str] = {"completion": "cmpl", "chat": "chatcmpl"}


@dataclass
class Choice:
    """A choice as it grows."""

    text: str = ""
    end: Event | None = None
    """What ended it."""


@dataclass
class Answer:
    """The response to one request."""

    style: Style
    model: str
    num_choices: int
    prompt_tokens: int
    telemetry: bool
    strip: bool
    """Whether white space at the start of a choice is none of the answer's."""
    served: Served | None = None
    """Which version answers; known from the first event on."""
    choices: list[Choice] = field(default_factory=list)
    _id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.choices = [Choice() for _ in range(self.num_choices)]

    @property
    def is_done(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.end for choice in self.choices)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated, ends of text included."""
        return sum(choice.end.num_tokens for choice in self.choices if choice.end)

    def take(self, event: Event) -> str:
        """Take an event of one choice; return its new text as it goes out."""
        choice = self.choices[event.choice]
        text = event.text.lstrip() if self.strip and not choice.text else event.text
        choice.text += text
        if event.finish_reason is not None:
            choice.end = event
        return text

    def whole(self) -> dict[str, Any]:
        """The response in one piece."""
        choices = []
        for index, choice in enumerate(self.choices):
            assert choice.end is not None
            said = (
                {"text": choice.text}
                if self.style == "completion"
                else {"message": {"role": "assistant", "content": choice.text}}
            )
            choices.append(self._choice(index, said, choice.end))
        return {**self._envelope(streamed=False), "choices": choices, "usage": self.usage()}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before any text: who speaks."""
        if self.style == "completion":
            return []
        return [
            self._chunk([self._choice(index, {"delta": {"role": "assistant", "content": ""}})])
            for index in range(self.num_choices)
        ]

    def chunk(self, event: Event, text: str) -> dict[str, Any]:
        """The chunk of an event."""
        said: dict[str, Any] = {"text": text} if self.style == "completion" else {"delta": {"content": text} if text else {}}
        return self._chunk([self._choice(event.choice, said, event if event.finish_reason else None)])

    def closing(self) -> dict[str, Any]:
        """The chunk after all text: what it took."""
        return {**self._chunk([]), "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Token counts."""
        completion = self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    def _chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {**self._envelope(streamed=True), "choices": list(choices)}

    def _choice(self, index: int, said: dict[str, Any], end: Event | None = None) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": None, "finish_reason": end.finish_reason if end else None}
        if self.telemetry and end is not None:
            choice["grun"] = {"gates": [asdict(reading) for reading in end.gates]}
        return choice

    def _envelope(self, *, streamed: bool) -> dict[str, Any]:
        assert self.served is not None
        return {
            "id": f"{_PREFIXES[self.style]}-{self._id}",
            "object": _OBJECTS[self.style, streamed],
            "created": self._created,
            "model": self.model,
            "system_fingerprint": self.served.fingerprint,
            "grun": {"model": self.served.name, "version": self.served.version, "digest": self.served.digest},
        }


def sse(values: Mapping[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = values if isinstance(values, str) else json.dumps(values, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
