"""Schedules: pure functions of the optimizer step, so that a resumed run needs no schedule state."""

__all__ = ["learning_rate_scale"]


def learning_rate_scale(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Factor on the peak learning rate in a step (counted from 0): linear warm-up, then linear decay towards zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (total_steps - step) / max(1, total_steps - warmup_steps)
