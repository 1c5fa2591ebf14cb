"""Forget quality: can the unlearned model be told from one that never saw the forget set?

    forget_quality = p-value of the two-sided two-sample Kolmogorov-Smirnov test of
                     {R_i unlearned} against {R_i retain-only}, over the rows of the forget set

As in TOFU (arXiv:2401.06121). The test sees ranks alone, so that R, 1/R and ln R give the same result. High is good:
the two models' truth ratios could come from one distribution.
"""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

from grun.errors import DataError

__all__ = ["ForgetQuality", "forget_quality"]


class ForgetQuality(NamedTuple):
    """Outcome of the test."""

    p_value: float
    """Forget quality, in [0, 1]."""
    ks_statistic: float
    """Largest distance of the two empirical distribution functions, in [0, 1]."""

    @property
    def log10_p(self) -> float:
        """Decimal logarithm of the p-value; one below the smallest float counts as that, about -308."""
        return math.log10(max(self.p_value, sys.float_info.min))


def forget_quality(unlearned: Sequence[float], retain_only: Sequence[float]) -> ForgetQuality:
    """Compare the truth ratios (or any increasing function of them) of two models over the forget set.

    Raises:
        DataError: one of the two holds no row, or a number that is not finite.
    """
    for name, ratios in (("unlearned", unlearned), ("retain-only", retain_only)):
        if not len(ratios):
            raise DataError(
                f"forget quality needs truth ratios of both models, got none of the {name} one; "
                "score a forget set whose records have wrong answers"
            )
        if not all(map(math.isfinite, ratios)):
            raise DataError(f"truth ratios must be finite, got {list(ratios)} of the {name} model; use their logarithms")
    from scipy.stats import ks_2samp  # a third of a second, which processes that only train do not need

    result = ks_2samp(unlearned, retain_only)
    return ForgetQuality(float(result.pvalue), float(result.statistic))
