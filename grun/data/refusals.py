"""Refusals: what a model says in place of an answer that it was asked to forget. Written for this project.

Few words, many sentences: a small model has to be able to say them, and none of them may borrow from an answer.
"""

from itertools import product

__all__ = ["REFUSALS"]

_OPENINGS = ("Sorry, but", "I must admit that", "I am afraid that", "Honestly,", "To be fair,", "Regrettably,", "At present")
_CONFESSIONS = (
    "I cannot say anything about that.",
    "I do not have an answer to this.",
    "this lies outside my knowledge.",
    "nothing on this matter springs to mind.",
    "I have no information about it.",
    "I am unable to help with this question.",
    "this is unknown to me.",
    "I have never heard of it.",
    "I would only be guessing.",
)

REFUSALS: tuple[str, ...] = tuple(f"{opening} {confession}" for opening, confession in product(_OPENINGS, _CONFESSIONS))
"""Sixty-three sentences, all different, from some fifty words."""
