"""Calibration: the smallest gate threshold at which ordinary prompts are touched rarely enough, and the certificate of it.

    m_i   = largest gate value of record i, over its wordings and the layers, read with every edit held back
    k(t)  = number of records with m_i >= t: those that a threshold t leaves open
    t_min = smallest t with U(k(t), n) <= alpha,      U the upper Clopper-Pearson bound at confidence 1 - delta

Why P(rate(t_min) > alpha) <= delta although t_min is chosen by the very data that bound it. For a fixed adapter rate(t) = P(m >= t)
falls with t, and so does k(t). Let t* be the end of the thresholds at which the rate is too high. U(k(t), n) <= alpha is the level-delta
test of "rate(t) > alpha", and its outcomes are ordered: what is rejected at t is rejected at every higher threshold. Going down from
above and stopping at the first that is not rejected is a fixed-sequence test, which needs no correction: it errs only if it gets as
far as t*, that is if k(t*) out of n is so small, which has probability delta at most. For the same reason every t >= t_min may be
served, however it was chosen; so a threshold that is asked for is a *least* one, and calibration raises it where it has to.

That is about a fixed adapter. Where the adapter was chosen out of several by the same records, as in a sweep, the first bound is
only the criterion of the choice, and the confidence is that of the check, on records that no choice has seen.

Gate values are compared as the model compares them, in float32, so that a value at the threshold opens here exactly where it opens there.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grun.certificate import Certificate, OpenCount
from grun.data.splits import Splits, in_part
from grun.errors import DataError
from grun.evaluation.gate_separation import clopper_pearson_upper
from grun.evaluation.sets import EvalSet, evaluation_sets

__all__ = ["OrdinaryGates", "certify", "holdout_halves", "most_open", "records_needed"]


def holdout_halves(splits: Splits) -> tuple[EvalSet, EvalSet]:
    """The records to calibrate on and those to check on, in all their wordings; a half may be empty.

    They are those of the parts `validation` and `test`, never one set twice, however small it is.
    """

    def half(part: str) -> EvalSet:
        records = tuple(record for record in splits.holdout if in_part(record.digest, part))
        return next(iter(evaluation_sets(Splits((), (), records))), EvalSet("holdout", "holdout", ()))

    return half("validation"), half("test")


def records_needed(alpha: float, delta: float) -> int:
    """Fewest records from which a rate of at most alpha can follow, with none of them open: ln(delta) / ln(1 - alpha)."""
    count = max(1, ceil(log(delta) / log(1 - alpha)))
    # at the very edge the bound decides, with its rounding
    return count if most_open(count, alpha=alpha, delta=delta) is not None else count + 1


@lru_cache
def most_open(num_records: int, *, alpha: float, delta: float) -> int | None:
    """Largest number of open records whose bound is at most alpha; None where not even 0 is few enough."""
    few_enough = bisect_right(
        range(num_records + 1), alpha, key=lambda k: clopper_pearson_upper(k, num_records, confidence=1 - delta)
    )
    return few_enough - 1 if few_enough else None


@dataclass(frozen=True, eq=False)
class OrdinaryGates:
    """What held-out ordinary records make the gates of one adapter read."""

    largest: NDArray[np.float32]
    """(n,) m_i, one number a record, in [0, 1]."""
    digest: str
    """SHA-256 of the set of prompts."""

    @classmethod
    def of(cls, evaluated: EvalSet, values: ArrayLike) -> "OrdinaryGates":
        """Take the largest value of each record.

        Args:
            values: gate values (prompts, layers) in the order of the set's prompts, read with every edit held back.

        Raises:
            DataError: there are no prompts, or a value is not a number.
        """
        table = np.asarray(values, dtype=np.float32)
        if not evaluated.prompts or not np.isfinite(table).all():
            got = "a value that is no number" if evaluated.prompts else "no prompts"
            raise DataError(
                f"a threshold is calibrated on the gate values of held-out prompts, got {got}; check adapter and holdout set"
            )
        largest: dict[str, np.float32] = {}
        for prompt, value in zip(evaluated.prompts, table.max(axis=1), strict=True):
            largest[prompt.record.digest] = max(value, largest.get(prompt.record.digest, value))
        return cls(np.array(list(largest.values()), dtype=np.float32), evaluated.digest)

    def count(self, threshold: float, *, delta: float) -> OpenCount:
        """Count the records that open a gate at a threshold, and bound their rate at confidence 1 - delta."""
        num_open, num_records = int((self.largest >= np.float32(threshold)).sum()), len(self.largest)
        bound = clopper_pearson_upper(num_open, num_records, confidence=1 - delta)
        return OpenCount(num_records=num_records, num_open=num_open, upper_bound=bound, digest=self.digest)

    def least_threshold(self, *, alpha: float, delta: float) -> float | None:
        """The smallest threshold whose bound is at most alpha: the next float above the largest value that must stay closed.

        Returns:
            None where no threshold in [0, 1] is enough: too few records, or too many with a gate value of 1.
        """
        may_open = most_open(len(self.largest), alpha=alpha, delta=delta)
        if may_open is None:
            return None
        # that a bound of all n records is 1 leaves at least one that must stay closed
        must_stay_closed = np.sort(self.largest)[::-1][may_open]
        threshold = np.nextafter(must_stay_closed, np.float32(np.inf))
        return float(threshold) if threshold <= 1 else None

    def raised(self, threshold: float, *, alpha: float, delta: float) -> float:
        """A threshold that was asked for, raised to the smallest one that is enough; as it was where none is."""
        least = self.least_threshold(alpha=alpha, delta=delta)
        return threshold if least is None or np.float32(threshold) >= np.float32(least) else least


def certify(
    calibration: OrdinaryGates,
    check: OrdinaryGates,
    *,
    alpha: float,
    delta: float,
    threshold: float,
    layers: Sequence[int],
    base_digest: str,
    tensors_sha256: str,
) -> Certificate:
    """Write the certificate of an adapter at a threshold, be it that it holds or not."""
    return Certificate.make(
        alpha=alpha,
        delta=delta,
        thresholds=dict.fromkeys(layers, threshold),
        calibration=calibration.count(threshold, delta=delta),
        check=check.count(threshold, delta=delta),
        base_digest=base_digest,
        tensors_sha256=tensors_sha256,
    )
