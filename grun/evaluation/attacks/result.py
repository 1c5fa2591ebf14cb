"""What an attack got out of the model: numbers for the report, and the worst leak."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from grun.config.base import Config

__all__ = ["AttackResult", "Leak"]

Share = Annotated[float, Field(ge=0, le=1)]


class Leak(Config):
    """One answer that gave something away."""

    digest: str
    """Content digest of the record."""
    rouge_l_recall: Share
    """Share of the gold answer that was said."""
    prompt: str | None = None
    """The prompt; only where the operator allows forget text in reports."""
    answer: str | None = None
    """The gold answer; as `prompt`."""
    said: str | None = None
    """What the model said; as `prompt`."""


class AttackResult(Config):
    """One attack on one adapter."""

    name: str
    """Name in the table of attacks, for instance `format/typos`."""
    family: str
    """What it belongs to, for instance `format`."""
    description: str
    """What is done, in a sentence for the reader of a report."""
    target: Literal["prompts", "model"]
    """Whether it changes what is asked or what is asked of."""
    num_prompts: PositiveInt
    """Forget prompts that were tried."""
    num_dropped: NonNegativeInt = 0
    """Prompts that were left out because they do not fit the context."""
    forget_rouge_l_recall: Share
    """Mean over the forget prompts, adapter on (unless the attack is to switch it off)."""
    base_rouge_l_recall: Share | None = None
    """The same prompts on the base alone: what there was to get. None where the attack is on the base itself."""
    before_rouge_l_recall: Share | None = None
    """The same prompts on the base and adapter as they were, where the attack changes one of the two."""
    forget_open_rate: Share | None = None
    """Share of the forget prompts that open a gate; None where there is no gate."""
    num_ordinary: NonNegativeInt = 0
    """Held-out ordinary prompts that were put in the same form."""
    ordinary_open_rate: Share | None = None
    """Share of them that open a gate."""
    worst: Leak | None = None
    """The forget prompt that got most."""
