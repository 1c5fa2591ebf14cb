"""`scale`: how the cost of a GD step grows with prompt length, depth and width, and that of a cache with its rows.

One size is varied at a time. Each curve is given its exponent: the slope of a straight line through the logarithms.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from grun.data.batches import PairedSampler
from grun.data.prompts import Example
from grun.data.records import QARecord
from pipelines.benchmarks.figures import Curve, cost_figure
from pipelines.benchmarks.harness import Options, Report, Row, Seconds, compare, cost, interleave, plain, timed
from pipelines.benchmarks.workload import Geometry, Training, make_recipe, make_tokenizer, new_lm, new_training, read_rows

__all__ = ["exponent", "run"]

_BATCH = 8
_ANSWER = 32


@dataclass(frozen=True)
class _Sizes:
    """The middle, from which one size is varied at a time."""

    middle: Geometry = field(default_factory=lambda: Geometry(num_layers=8, hidden_size=256, num_heads=4))
    prompt: int = 64
    prompts: tuple[int, ...] = (32, 64, 128, 256, 512)
    layers: tuple[int, ...] = (4, 8, 16)
    widths: tuple[int, ...] = (128, 256, 512)
    cached_rows: tuple[int, ...] = (32, 64, 128, 256)

    @classmethod
    def toy(cls) -> "_Sizes":
        return cls(Geometry.toy(), 16, (16, 32), (4, 8), (32, 64), (8, 16))


class _Lab:
    """Rows of a wanted length, and what is done with them."""

    def __init__(self, options: Options, sizes: _Sizes) -> None:
        self.options = options
        self.sizes = sizes
        self.recipe = make_recipe(options, "gd", batch_size=_BATCH)
        self.splits = read_rows(self.options)
        self.tokenizer = make_tokenizer(self.splits, sizes.middle)
        answers = [record.answer for record in self.splits.retain if isinstance(record, QARecord)]
        self.stream: list[int] = self.tokenizer(" ".join(answers), verbose=False)["input_ids"]

    def examples(self, count: int, prompt: int) -> list[Example]:
        """TOFU's text in rows of one length: `prompt` tokens and an answer of 32."""
        length = prompt + _ANSWER
        starts = range(0, count * length, length)
        return [Example(f"{start:064x}", tuple(self.stream[start : start + length]), prompt) for start in starts]

    def steps(self, geometry: Geometry, prompt: int, title: str) -> Mapping[str, list[Seconds]]:
        """What a step takes, full and cached."""
        size, rows = self.recipe.train.batch_size, self.examples(2 * _BATCH, prompt)
        sampler = PairedSampler(rows[:size], rows[size : 2 * size], batch_size=size, seed=0, pairing="fixed")
        training = self._training(geometry)
        training = replace(training, task=replace(training.task, sampler=sampler))
        with tempfile.TemporaryDirectory(dir=self.options.work) as folder:
            cache = training.build_cache(training.examples(1), Path(folder))
            ways = {"full": timed(training.full(1).step), "cached": timed(training.cached(cache, 1).step)}
            return interleave(ways, self.options.repeats, title=title)

    def _training(self, geometry: Geometry) -> Training:
        few = replace(self.splits, retain=self.splits.retain[:1])  # the task's own rows are not used
        return new_training(new_lm(geometry, self.tokenizer), self.recipe, few)

    def builds(self) -> Mapping[str, list[Seconds]]:
        """What building a cache takes, by number of rows."""
        training = self._training(self.sizes.middle)

        def build(count: int) -> None:
            with tempfile.TemporaryDirectory(dir=self.options.work) as folder:
                training.build_cache(self.examples(count, self.sizes.prompt), Path(folder))

        def way(count: int) -> Callable[[int], Seconds]:
            return timed(lambda _index: build(count))

        ways = {str(count): way(count) for count in self.sizes.cached_rows}
        return interleave(ways, self.options.repeats, title="building caches")


def run(options: Options) -> Report:
    """Measure all curves.

    Raises:
        DataError: TOFU is not where it should be.
    """
    sizes = _Sizes.toy() if options.tiny else _Sizes()
    lab = _Lab(options, sizes)
    middle = sizes.middle
    varied = {
        "prompt_tokens": {n: (middle, n) for n in sizes.prompts},
        "blocks": {n: (replace(middle, num_layers=n), sizes.prompt) for n in sizes.layers},
        "width": {n: (replace(middle, hidden_size=n), sizes.prompt) for n in sizes.widths},
    }
    rows: list[Row] = []
    panels: dict[str, list[Curve]] = {}
    for kind, cases in varied.items():
        samples = {n: lab.steps(geometry, prompt, f"{kind} {n}") for n, (geometry, prompt) in cases.items()}
        costs = {way: {n: cost(f"scale.{kind}.{n}.{way}", samples[n][way]) for n in cases} for way in ("full", "cached")}
        rows += [compare(f"scale.{kind}.{n}.full_over_cached", samples[n]["full"], samples[n]["cached"]) for n in cases]
        rows += [row for by_size in costs.values() for pair in by_size.values() for row in pair]
        panels[kind] = [_curve({n: pair[0].value for n, pair in by_size.items()}, way) for way, by_size in costs.items()]
    built = {int(count): cost(f"scale.cached_rows.{count}.build", taken) for count, taken in lab.builds().items()}
    rows += [row for pair in built.values() for row in pair]
    panels["cached_rows"] = [_curve({count: pair[0].value for count, pair in built.items()}, "build")]
    rows += [
        plain(f"scale.{kind}.{label.split()[0]}_exponent", exponent(xs, ys), "")
        for kind, curves in panels.items()
        for xs, ys, label in curves
    ]
    workload = {"middle": vars(middle), "prompt": sizes.prompt, "answer": _ANSWER, "forget_rows": lab.recipe.train.batch_size}
    return Report(rows, cost_figure("How costs grow", panels, ylabel="CPU seconds"), workload)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the line of least squares through the logarithms: 1 where cost is proportional to size, 2 where to its square."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _curve(costs: Mapping[int, float], way: str) -> Curve:
    sizes, values = list(costs), list(costs.values())
    return sizes, values, f"{way} (exponent {exponent(sizes, values):.2f})"
