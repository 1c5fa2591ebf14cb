"""A question as somebody puts it: the words themselves, and what stands around them in the prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

__all__ = ["Asked", "Family", "Others", "Table", "Wrapper"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A wrapped question. Plain text in, plain text out: which tokens it becomes is the encoder's business."""

    question: str
    """What stands where the template has the question."""
    before: str = ""
    """Text before the template; under a chat template, before the question."""
    turns: tuple[tuple[str, str], ...] = ()
    """Questions and answers that came earlier in the conversation, in the template of the last one."""
    frame: str | None = None
    """Prompt in place of the template; holds the question as `{q}`."""


Others = Sequence[str]
"""Ordinary questions that a wrapper may quote."""

Wrapper = Callable[[str, Random, Others], Asked]
"""A pure function: the same question, random state and other questions give the same wrapped question."""


@dataclass(frozen=True)
class Family:
    """Wrappers that share an idea."""

    description: str
    """The idea, in a sentence for the reader of a report."""
    wrap: Wrapper
    """Draws one member of the family and applies it."""
    sentences: tuple[str, ...] = ()
    """The texts that it draws from."""


Table = Mapping[str, Family]
"""Families by name."""
