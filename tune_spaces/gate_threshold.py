"""Gate thresholds alone: one adapter is trained, and every cut-off is scored from it."""

from tune_spaces.space import Space

__all__ = ["SPACE"]

SPACE = Space(
    name="gate_threshold",
    title="the inference cut-off of the gate, from one trained adapter",
    thresholds=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998),
)
