"""`stack`: what a stack of 1, 10 or 50 adapters costs when a model is served, in prefill and in decoding.

Generation is timed as in `inference`. The members are untrained and their thresholds are above what they read, as
almost every prompt of a served model is about no request: what is measured is the cost of having members, not of edits.
"""

from dataclasses import replace

from grun.config import SumConfig
from grun.data.splits import Splits
from grun.interventions import AdapterStack, StackMember, build_adapter
from grun.lm import FrozenLM, IntervenedLM
from pipelines.benchmarks.harness import Options, Report, Row, compare, cost
from pipelines.benchmarks.inference import BATCHES, Generation, generate_with
from pipelines.benchmarks.workload import make_recipe

__all__ = ["run"]

_SIZES = (1, 10, 50)
_CLOSED = 0.9
"""Gate threshold; values of untrained gates lie about 0.5."""


def run(options: Options) -> Report:
    """Compare generation with stacks of several sizes with each other and with the base's own, one prompt and 32 at a time.

    Raises:
        DataError: TOFU is not where it should be.
    """

    def models(lm: FrozenLM, _splits: Splits) -> dict[str, IntervenedLM]:
        full = _stack(options, lm)
        stacks = {str(size): AdapterStack(full.members[:size], full.composition) for size in _SIZES}
        return {"base": IntervenedLM(lm), **{name: IntervenedLM(lm, stack) for name, stack in stacks.items()}}

    return generate_with(options, models, _rows, "Generation with a stack of adapters", sizes=_SIZES)


def _stack(options: Options, lm: FrozenLM) -> AdapterStack:
    """The largest stack: the recipe's default adapter, drawn anew for each member."""
    config = make_recipe(options, "gd").adapter
    adapters = [
        build_adapter(config, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=seed) for seed in range(_SIZES[-1])
    ]
    return AdapterStack([StackMember(f"r{index}", adapter, _CLOSED) for index, adapter in enumerate(adapters)], SumConfig())


def _rows(batch: int, samples: dict[str, list[Generation]]) -> list[Row]:
    rows: list[Row] = []
    for phase in ("prefill", "decode"):
        taken = {name: [getattr(sample, phase) for sample in own] for name, own in samples.items()}
        pairs = [(str(size), other) for size in _SIZES for other in ("base", "1") if str(size) != other]
        ratios = [compare(f"stack.{phase}_{name}_over_{other}.batch_{batch}", taken[name], taken[other]) for name, other in pairs]
        if batch == max(BATCHES):
            rows += [replace(row, name=row.name.removesuffix(f".batch_{batch}")) for row in ratios]
        rows += ratios
        rows += [row for name, own in taken.items() for row in cost(f"stack.{phase}.batch_{batch}.{name}", own)]
    return rows
