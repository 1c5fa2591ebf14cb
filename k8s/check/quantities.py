"""Quantities of Kubernetes: `500m`, `2Gi`, `1.5`, `1e3`."""

import re
from decimal import Decimal
from math import ceil

from grun.errors import ConfigError

__all__ = ["quantity", "whole"]

_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10) ** 3, "M": Decimal(10) ** 6, "G": Decimal(10) ** 9, "T": Decimal(10) ** 12, "P": Decimal(10) ** 15,
    "Ki": Decimal(2) ** 10, "Mi": Decimal(2) ** 20, "Gi": Decimal(2) ** 30, "Ti": Decimal(2) ** 40, "Pi": Decimal(2) ** 50,
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([numkMGTP]?|[KMGTP]i)\Z")


def quantity(text: str | int | float) -> Decimal:
    """Return a quantity in its unit (cores, bytes, pieces).

    Raises:
        ConfigError: it is none.
    """
    found = _QUANTITY.match(str(text))
    if not found:
        raise ConfigError(
            f"a quantity must be a number with a suffix of Kubernetes, got {text!r}; write for instance 500m or 2Gi"
        )
    return Decimal(found.group(1)) * _SUFFIXES[found.group(2)]


def whole(text: str | int | float) -> int:
    """Return a quantity rounded up, as Go's `Quantity.Value()` does."""
    return ceil(quantity(text))
