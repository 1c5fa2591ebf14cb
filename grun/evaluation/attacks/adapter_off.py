"""Switch the adapter off. Reported as what it is: an adapter hides, the weights still know."""

from grun.evaluation.attacks.bench import Attacked, Bench

__all__ = ["adapter_off"]


def adapter_off(bench: Bench) -> Attacked:
    """Ask the base alone."""
    return Attacked(bench.plain(bench.forget), adapter_on=False)
