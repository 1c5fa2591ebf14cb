"""The utility certificate: a bound on how often an ordinary prompt is touched, which travels with the adapter.

    P(false-open rate > alpha, and yet the certificate holds) <= delta      over the draw of the held-out prompts

It rests on counts alone: of n held-out ordinary records, k open a gate at the threshold. One of them counts as open if any of its
wordings opens one, as the wordings of a record are not independent. A certificate holds where the upper Clopper-Pearson bound of
k out of n at confidence 1 - delta is at most alpha, twice: on the records that the threshold was chosen on, and on a second set,
which took no part in choosing it. The second alone carries the promise, whatever was chosen by the first, be it the threshold of
one adapter or an adapter out of many (see :mod:`grun.evaluation.calibration` for what the first adds).

The prompts have to be like those that will come: the bound says nothing about another kind.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from grun.config.base import Config, Count

__all__ = ["Certificate", "OpenCount"]

Share = Annotated[float, Field(gt=0, lt=1)]


class OpenCount(Config):
    """How many of some held-out ordinary records open a gate."""

    num_records: Annotated[Count, Field(gt=0)]
    """Records n, all of whose wordings were tried."""
    num_open: Count
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
    """What is promised about ordinary prompts, and what the promise rests on. Made by :meth:`make`."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    sentence: str
    """What is promised, in one sentence."""
    holds: bool
    """Whether both bounds are at most alpha; if not, nothing is promised."""
    alpha: Share
    """Largest false-open rate that is promised."""
    delta: Share
    """Probability that the held-out prompts mislead."""
    thresholds: Annotated[dict[int, Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]
    """Gate threshold of each intervened block."""
    calibration: OpenCount
    """The records that the threshold was chosen on."""
    check: OpenCount
    """The records that it was checked on."""
    base_digest: str
    """SHA-256 of the base that the gates were read on."""
    tensors_sha256: str
    """SHA-256 of the adapter's tensors."""
    digest: str
    """SHA-256 of all the above."""

    @classmethod
    def make(
        cls,
        *,
        alpha: float,
        delta: float,
        thresholds: Mapping[int, float],
        calibration: OpenCount,
        check: OpenCount,
        base_digest: str,
        tensors_sha256: str,
    ) -> Self:
        """Say what the counts amount to."""
        holds = max(calibration.upper_bound, check.upper_bound) <= alpha
        certificate = cls(
            sentence=_sentence(alpha, delta, calibration, check, holds=holds),
            holds=holds,
            alpha=alpha,
            delta=delta,
            thresholds=dict(thresholds),
            calibration=calibration,
            check=check,
            base_digest=base_digest,
            tensors_sha256=tensors_sha256,
            digest="",
        )
        content = json.dumps(certificate.model_dump(mode="json", exclude={"digest"}), sort_keys=True)
        return certificate.model_copy(update={"digest": hashlib.sha256(content.encode()).hexdigest()})

    def covers(self, threshold: float | None) -> bool:
        """Whether it speaks for a gate threshold: a higher one than its own opens no more, soft gates are never closed."""
        return threshold is not None and max(self.thresholds.values()) <= threshold


def _sentence(alpha: float, delta: float, calibration: OpenCount, check: OpenCount, *, holds: bool) -> str:
    counts = " and ".join(f"{count.num_open} of {count.num_records}" for count in (calibration, check))
    if not holds:
        return (
            f"No promise: that at most {alpha:.4g} of ordinary prompts are touched is not confirmed at confidence {1 - delta:.6g}, as "
            f"{counts} held-out records open a gate (calibration and check), which bounds the rate by {calibration.upper_bound:.4f} and "
            f"{check.upper_bound:.4f} only; a prompt that opens none gets the base model's exact output."
        )
    return (
        f"At most {alpha:.4g} of ordinary prompts like the held-out ones are touched (confidence {1 - delta:.6g}; {counts} held-out "
        "records open a gate in calibration and check), and every other gets the base model's exact output."
    )
