"""Numbers as people read them: "4.1 %", "1 of 164", "2.3 MB"."""

__all__ = ["count_of", "duration", "megabytes", "number", "per_cent"]

_SOON_WHOLE = 0.0005
_RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def per_cent(share: float | None) -> str:
    """A share as per cent with one decimal; what is not nothing is never shown as nothing, nor what is not all as all."""
    if share is None:
        return "not known"
    if 0 < share < _SOON_WHOLE:
        return "under 0.1 %"
    if 1 - _SOON_WHOLE < share < 1:
        return "over 99.9 %"
    text = f"{100 * share:.1f}".removesuffix(".0")
    return f"{text} %"


def count_of(rate: float, num: int) -> str:
    """A rate over so many prompts as a count."""
    return f"{round(rate * num):,} of {num:,}"


def number(value: float | None) -> str:
    """A number of any size, four figures of it."""
    if value is None:
        return "not known"
    if isinstance(value, int):
        return f"{value:,}"
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa} \u00d7 10{str(int(exponent)).translate(_RAISED)}" if exponent else mantissa


def megabytes(num_bytes: int | None) -> str:
    """A size in kB or MB."""
    if num_bytes is None:
        return "not known"
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.1f} kB"


def duration(seconds: float | None) -> str:
    """A time in seconds, minutes or hours."""
    if seconds is None:
        return "not known"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
