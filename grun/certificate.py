"""The utility certificate: a bound on how often an ordinary prompt is touched, which travels with the adapter.

    P(false-open rate > alpha) <= delta          over the draw of the calibration prompts

It rests on counts alone: of n held-out ordinary records, k open a gate at the threshold. One of them counts as open if any of its
wordings opens one. The upper Clopper-Pearson bound of k out of n at confidence 1 - delta is at most alpha; the same count on a
second held-out set, which took no part in choosing the threshold, stands beside it.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from grun.config.base import Config

__all__ = ["Certificate", "OpenCount"]

Share = Annotated[float, Field(gt=0, lt=1)]


class OpenCount(Config):
    """How many of some held-out ordinary records open a gate."""

    num_records: PositiveInt
    """Records n, all of whose wordings were tried."""
    num_open: NonNegativeInt
    """Records k, any wording of which opens a gate of any layer."""
    upper_bound: Annotated[float, Field(ge=0, le=1)]
    """Upper Clopper-Pearson bound of the rate k / n at confidence 1 - delta."""
    digest: str
    """SHA-256 of the set of prompts."""

    @property
    def rate(self) -> float:
        """Share of the records that open a gate."""
        return self.num_open / self.num_records


class Certificate(Config):
    """What is promised about ordinary prompts, and what the promise rests on."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    alpha: Share
    """Largest false-open rate that is promised."""
    delta: Share
    """Probability that the calibration prompts mislead."""
    thresholds: dict[int, Annotated[float, Field(ge=0, le=1)]]
    """Gate threshold of each intervened block."""
    calibration: OpenCount
    """The records that the threshold was chosen on."""
    check: OpenCount
    """The records that it was checked on."""
    base_digest: str
    """SHA-256 of the base that the gates were read on."""
    tensors_sha256: str
    """SHA-256 of the adapter's tensors."""
