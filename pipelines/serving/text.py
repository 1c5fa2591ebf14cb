"""Text from tokens, as they come: whole characters only, and nothing of a stop string.

A token may hold half a character, and its text may depend on the token before it. So a few tokens are decoded together,
with and without the new ones, and the difference is what is new. Text that could still become a stop string is held back.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["TextStream"]

_INCOMPLETE = "\ufffd"
_CONTEXT = 4
_LONGEST_CHARACTER = 8


class TextStream:
    """The text of one answer.

    Args:
        prompt: token ids that it follows; the last few decide about white space at its start.
        stops: strings that end it; they are no part of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._decoder: Any = tokenizer
        self._ids = list(prompt[-_CONTEXT:])
        self._read = len(self._ids)
        self._shown = self._decode(self._ids)
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """Whether a stop string was met."""

    def push(self, token: int) -> str:
        """Take one token and return the text that is certain by now."""
        self._ids.append(token)
        text = self._decode(self._ids)
        # bytes that will never become a character do not hold back what follows
        if text.endswith(_INCOMPLETE) and len(self._ids) - self._read < _LONGEST_CHARACTER:
            return ""
        return self._release(self._take(text))

    def finish(self) -> str:
        """Return what was held back; no token follows."""
        if self.stopped:
            return ""
        rest = self._release(self._take(self._decode(self._ids)))
        if not self.stopped:
            rest, self._held = rest + self._held, ""
        return rest

    def _take(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._ids = self._ids[-_CONTEXT:]
        self._read, self._shown = len(self._ids), self._decode(self._ids)
        return new

    def _release(self, new: str) -> str:
        text = self._held + new
        met = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if met:
            self.stopped, self._held = True, ""
            return text[: min(met)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._decoder.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a start of `stop`, and not all of it."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
