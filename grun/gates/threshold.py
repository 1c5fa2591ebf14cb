"""The gate threshold, which makes a closed gate exactly 0 at inference.

A sigmoid never reaches 0, so a soft gate changes every prompt a little; with a threshold, a prompt that does not
open the gate is not changed at all. Training uses none, as a gate that is cut off learns nothing.
"""

from torch import Tensor

__all__ = ["apply_threshold"]


def apply_threshold(values: Tensor, threshold: float | None) -> Tensor:
    """Return gate values with those below `threshold` set to exactly 0 and the others unchanged; None changes nothing."""
    return values if threshold is None else values.masked_fill(values < threshold, 0.0)
