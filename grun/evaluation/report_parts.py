"""What a report holds beside its metrics: the verdict, the gates' histograms, the threshold curve, cost and provenance.

A histogram counts gate values in :data:`NUM_BINS` bins of equal width over [0, 1]; the last one holds 1 itself. Nothing here
names a place on the machine that made it, so that two machines write the same.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from grun.config.base import Config

__all__ = ["NUM_BINS", "Cost", "Finding", "GateHistogram", "Provenance", "Status", "ThresholdPoint", "Verdict"]

NUM_BINS = 20

Share = Annotated[float, Field(ge=0, le=1)]

Status = Literal["forgotten", "not forgotten", "damaged", "undecided"]
"""What becomes of the request, in a word."""


class Finding(Config):
    """The answer to one of the questions behind the verdict."""

    question: Literal["forgotten", "undamaged", "certified", "attacks"]
    """Forgotten enough? The rest as it was? What is promised? What does the worst attack get?"""
    answer: Literal["yes", "no", "unknown"]
    """Whether it is as it should be; unknown where a number is missing."""
    text: str
    """The answer in a sentence, with its numbers."""


class Verdict(Config):
    """Whether the request is fulfilled, by the bounds of the promotion policy."""

    status: Status
    """In a word."""
    sentence: str
    """In a sentence, with the few numbers that carry it."""
    findings: tuple[Finding, ...]
    """What it rests on, one answer a question."""


class GateHistogram(Config):
    """How the gate values of some prompts are distributed."""

    side: Literal["forget", "ordinary"]
    """Forget prompts in unseen words, or held-out ordinary ones."""
    layer: NonNegativeInt | None
    """Block of the gate; null for the largest value over all blocks, which decides whether anything opens."""
    counts: Annotated[tuple[NonNegativeInt, ...], Field(min_length=NUM_BINS, max_length=NUM_BINS)]
    """Prompts in each bin, from 0 to 1."""


class ThresholdPoint(Config):
    """What one gate threshold, the same at every block, would give."""

    threshold: Share
    """Gate threshold."""
    forget_open_rate: Share | None = None
    """Share of unseen forget prompts that open a gate."""
    false_open_rate: Share | None = None
    """Share of held-out ordinary prompts that open a gate."""
    forget_rouge_l_recall: Share | None = None
    """Share of the forgotten answers that is still said, on unseen forget prompts."""
    utility_ratio: NonNegativeFloat | None = None
    """Model utility as a share of the base's own."""


class Cost(Config):
    """What it took. What is not known is null."""

    training_steps: NonNegativeInt | None = None
    """Optimizer steps."""
    wall_seconds: NonNegativeFloat | None = None
    """Seconds from the first step to the last; null for a run that was continued after an interruption."""
    num_workers: NonNegativeInt | None = None
    """Workers that trained it together."""
    trained_parameters: NonNegativeInt | None = None
    """Numbers in the adapter."""
    base_parameters: NonNegativeInt | None = None
    """Numbers in the base, all of them untouched."""
    trained_share: NonNegativeFloat | None = None
    """The adapter's numbers as a share of the base's."""
    cache_bytes: NonNegativeInt | None = None
    """Size of the prefix cache that training read."""
    adapter_bytes: NonNegativeInt | None = None
    """Size of the adapter's two files."""


class Provenance(Config):
    """What the report is about, and where it can be found. What is not known is null."""

    request_id: str | None = None
    """Identifier of the request."""
    request_reason: str | None = None
    """Why it was made."""
    data_digests: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the forget, retain and holdout set."""
    base_name: str | None = None
    """Name of the base: of the hub's model, or of the folder without the way to it."""
    base_revision: str | None = None
    """Hub revision of the base."""
    recipe_name: str | None = None
    """Name of the recipe that scored it."""
    objective: str | None = None
    """What training minimised: the kinds of the forget and the retain term."""
    layers: tuple[NonNegativeInt, ...] = ()
    """Blocks that the adapter edits."""
    rank: NonNegativeInt | None = None
    """Rank of the edit."""
    code_version: str | None = None
    """Version of the code that trained it."""
    date: str | None = None
    """Day on which it was scored, in UTC (ISO 8601)."""
    mlflow_run_id: str | None = None
    """MLflow run that holds this report."""
    registered_model: str | None = None
    """Name in the model registry."""
    registered_version: NonNegativeInt | None = None
    """Version in the model registry."""
