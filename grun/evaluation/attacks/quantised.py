"""Quantise the base and leave the adapter as it is: do gates that were trained on exact weights still open?"""

from collections.abc import Callable

from grun.evaluation.attacks.bench import Attacked, Bench

__all__ = ["quantised"]


def quantised(kind: str) -> Callable[[Bench], Attacked]:
    """Put the adapter on the base in another precision (`int8`, `int4`)."""

    def attack(bench: Bench) -> Attacked:
        import grun.lm

        base_variant = getattr(grun.lm, "base_variant", None)
        if base_variant is None:
            return Attacked((), reasons=("this version cannot quantise a base",))
        return Attacked(bench.plain(bench.forget), bench.plain(bench.ordinary), lm=base_variant(bench.lm, kind))

    return attack
