"""Model utility: one number for everything that has to be kept (TOFU, arXiv:2401.06121).

    model_utility = harmonic mean of {probability, ROUGE-L recall, truth ratio} x utility sets

The harmonic mean lets no set be sacrificed for another: a single 0 makes it 0.
"""

from collections.abc import Sequence

from grun.errors import DataError

__all__ = ["model_utility"]


def model_utility(numbers: Sequence[float]) -> float:
    """Return the harmonic mean of the sets' numbers, each in [0, 1].

    Raises:
        DataError: there are none, or one is negative or not a number.
    """
    if not numbers:
        raise DataError("model utility needs the numbers of at least one utility set, got none; name a utility set")
    if not all(number >= 0 for number in numbers):
        raise DataError(f"model utility is a mean of numbers that are at least 0, got {list(numbers)}; score the sets again")
    if min(numbers) == 0:
        return 0.0
    return len(numbers) / sum(1 / number for number in numbers)
