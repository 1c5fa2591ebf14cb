"""What is wrong with a training that ran to its end: flags, each with its reason and remedy.

A loss or gradient that is not finite stops a run before it is applied (:class:`grun.training.AdapterOptimizer`). What is here does not
stop one, as every step is clipped and may yet do good; whether the adapter is served is for its certificate and for promotion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["GateValues", "gate_flags", "gradient_flags"]

_EXPLODED = 1e3
"""Times the clipping norm: a step that is scaled down by more keeps the direction of a cliff and nothing of its height."""

_OFTEN = 0.1
"""Share of the steps that have to be such, so that a few hard batches are none."""

_FEW_STEPS = 8
"""Of a shorter run, quarters say nothing."""

_SOFT = 0.5
"""Where a gate without a threshold counts as open."""

_MOST = 0.5
"""Share of ordinary prompts from which on a gate that opens for them tells nothing apart."""


@dataclass(frozen=True)
class GateValues:
    """The largest gate value of each prompt of the probe after training; empty where the adapter has no gates."""

    forget: tuple[float, ...] = ()
    """Of forget prompts, in words that training never saw."""
    ordinary: tuple[float, ...] = ()
    """Of ordinary prompts that training never saw."""


def gradient_flags(norms: Sequence[float], clip: float) -> dict[str, str]:
    """Flag gradients that exploded while clipping hid it.

    Args:
        norms: of each step, before clipping.
        clip: the largest norm that is applied (`train.grad_clip`).
    """
    above = sum(norm > _EXPLODED * clip for norm in norms)
    quarter = len(norms) // 4
    grown = median(norms[-quarter:]) / max(median(norms[:quarter]), 1e-12) if len(norms) >= _FEW_STEPS else 0.0
    remedy = "lower `train.learning_rate` or the weight of the forget term, or choose a bounded one (`npo`, `simnpo`)"
    if norms and above >= max(1, _OFTEN * len(norms)):
        return {
            "exploding_gradients": f"gradients must stay near what clipping lets through, got a norm above {_EXPLODED:g} times "
            f"`train.grad_clip` {clip:g} in {above} of {len(norms)} steps (at most {max(norms):.3g}); {remedy}"
        }
    if grown > _EXPLODED and norms[-1] > clip:
        return {
            "exploding_gradients": f"gradients must not grow without end, got a norm that grew {grown:.3g} times from the first quarter of "
            f"the steps to the last (to {norms[-1]:.3g}, `train.grad_clip` {clip:g}); {remedy}"
        }
    return {}


def gate_flags(values: GateValues, threshold: float | None) -> dict[str, str]:
    """Flag gates that never open for what is to be forgotten, and gates that open for whatever comes.

    Args:
        threshold: from where on a gate counts as open; None for soft gates, which count as open from one half on.
    """
    bar = _SOFT if threshold is None else threshold
    at = f"the gate threshold {threshold:g}" if threshold is not None else "one half (soft gates)"
    flags: Mapping[str, str] = {}
    forget, ordinary = (sum(value >= bar for value in side) for side in (values.forget, values.ordinary))
    if values.forget and not forget:
        flags = {
            "gate_never_opens": f"a gate must open for what is to be forgotten, got one that opened for 0 of {len(values.forget)} forget "
            f"prompts at {at} (values up to {max(values.forget):.3g}): the adapter does nothing; raise `train.epochs`, "
            "`train.learning_rate` or `objective.gate_weight`, or lower `adapter.gate_threshold`"
        }
    if values.ordinary and ordinary >= _MOST * len(values.ordinary):
        flags = {
            **flags,
            "gate_always_opens": f"a gate must stay closed for ordinary prompts, got one that opened for {ordinary} of "
            f"{len(values.ordinary)} at {at} (values from {min(values.ordinary):.3g}); raise `objective.gate_weight`, "
            "`train.epochs` or `adapter.gate_threshold`, or keep more and more varied records (`data`)",
        }
    return dict(flags)
