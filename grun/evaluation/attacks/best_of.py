"""Ask again and again: samples at a temperature, of which the one that gives most away counts."""

from grun.evaluation.attacks.bench import Attacked, Bench

__all__ = ["SAMPLES", "TEMPERATURE", "best_of"]

SAMPLES = 8
TEMPERATURE = 1.0


def best_of(bench: Bench, samples: int = SAMPLES, temperature: float = TEMPERATURE) -> Attacked:
    """Ask in the records' own words, `samples` times."""
    return Attacked(bench.plain(bench.forget), samples=samples, temperature=temperature)
