"""Hardening: other forms of the training prompts, so that a gate learns the subject and not the phrasing."""

from typing import Literal

from pydantic import Field, NonNegativeInt

from grun.config.base import Config

__all__ = ["AugmentationConfig"]

FamilyName = Literal[
    "lead_in",
    "trailing_remark",
    "instruction",
    "header",
    "greeting",
    "fillers",
    "listed",
    "among_others",
    "markup",
    "spacing",
    "broken_words",
]


class AugmentationConfig(Config):
    """Wrapped forms of forget and retain questions, from families that evaluation does not use."""

    variants: NonNegativeInt = 0
    """Wrapped forms of each question beside the plain one; each visit of a row takes one of them all. 0: the plain question only."""
    families: tuple[FamilyName, ...] = Field(
        default=(
            "lead_in",
            "trailing_remark",
            "instruction",
            "header",
            "greeting",
            "fillers",
            "listed",
            "among_others",
            "markup",
            "spacing",
            "broken_words",
        ),
        min_length=1,
    )
    """Families of wrappers that the forms are drawn from."""
