"""`step`: what a training step costs, by pyreft as the official code does it, by full passes, and from the prefix cache."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from grun.data.splits import Splits
from grun.lm import CachedPass, FrozenLM, FullPass, PrefixCache
from grun.training import Task
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, Seconds, compare, cost, interleave, plain, timed
from pipelines.benchmarks.pyreft_step import PyreftInputs
from pipelines.benchmarks.workload import (
    OBJECTIVES,
    Geometry,
    Trainer,
    build_cache,
    lengthened,
    make_recipe,
    make_tokenizer,
    new_lm,
    new_task,
    step_examples,
    tofu_splits,
)
from pipelines.console import note

__all__ = ["run"]

_NUM_BATCHES = 2
"""Batches that the repeats take in turn; with long prompts, each takes 300 MB of cache."""
_LONG_TOKENS = 512
_BUCKETS = (1, 2, 4, 8)


def run(options: Options) -> Report:
    """Measure every objective, and GD once more behind long documents and with other numbers of length buckets.

    Raises:
        DataError: TOFU is not where it should be.
    """
    geometry = Geometry.toy() if options.tiny else Geometry()
    splits = tofu_splits(options.data)
    tokenizer = make_tokenizer(splits, geometry)
    lm = new_lm(geometry, tokenizer)
    rows: list[Row] = []
    for name, objective, rows_to_train in _cases(splits, tokenizer, options):
        bench = _Bench(name, lm, options, objective, rows_to_train)
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            rows += bench.measure(Path(folder), with_buckets=name == "gd")
    title = f"A training step: {geometry.num_layers} blocks, {geometry.hidden_size} wide, 16+16 TOFU rows, CPU time"
    return Report(rows, ratio_figure(title, rows), {"geometry": vars(geometry), "batch": "16+16", "adapter": "rank 4, linear gate"})


def _cases(splits: Splits, tokenizer: PreTrainedTokenizerFast, options: Options) -> list[tuple[str, str, Splits]]:
    """Name, objective, rows."""
    cases = [(name, name, splits) for name in OBJECTIVES]
    return [*cases, ("gd_long", "gd", lengthened(splits, tokenizer, 48 if options.tiny else _LONG_TOKENS))]


class _Bench:
    """One objective on one set of rows."""

    def __init__(self, name: str, lm: FrozenLM, options: Options, objective: str, splits: Splits) -> None:
        self.name = name
        self.lm = lm
        self.options = options
        self.recipe = make_recipe(options.data, OBJECTIVES[objective], batch_size=4 if options.tiny else 16)
        self.task: Task = new_task(self.recipe, splits, lm)

    def measure(self, folder: Path, *, with_buckets: bool) -> list[Row]:
        """Build the cache, compare the gradients, then the costs."""
        examples = step_examples(self.task, _NUM_BATCHES)
        note(f"step {self.name}: building the cache of {len(examples)} rows")
        cache = build_cache(self.lm, self.task, examples, folder)
        lengths = sorted(len(example.ids) for example in examples)
        rows = [plain(f"step.{self.name}.median_row", lengths[len(lengths) // 2], "tokens")]
        rows += self._gradients(cache)
        rows += self._costs(cache)
        return rows + self._buckets(cache) if with_buckets else rows

    def _trainers(self, cache: PrefixCache) -> dict[str, Trainer]:
        trainers = {"full": self._trainer(), "cached": self._trainer(cache), "pyreft": self._trainer()}
        pyreft = trainers["pyreft"]
        pyreft.inputs = PyreftInputs(pyreft.adapter, self.lm, self.task.objective, self.task.read_layer)
        return trainers

    def _trainer(self, cache: PrefixCache | None = None, num_buckets: int = 4) -> Trainer:
        cut = self.task.adapter.layers[0]
        base = FullPass(self.lm) if cache is None else CachedPass(self.lm.above(cut), cache, num_buckets)
        return Trainer(self.task, self.recipe, base, num_batches=_NUM_BATCHES)

    def _gradients(self, cache: PrefixCache) -> list[Row]:
        """How far the gradients are apart, untrained, on one batch."""
        full, cached, pyreft = (trainer.gradient() for trainer in self._trainers(cache).values())
        return [
            plain(f"step.{self.name}.gradient_rel_error", _distance(cached, full), ""),
            plain(f"step.{self.name}.pyreft_gradient_rel_error", _distance(pyreft, full), ""),
        ]

    def _costs(self, cache: PrefixCache) -> list[Row]:
        ways = {name: timed(trainer.step) for name, trainer in self._trainers(cache).items()}
        samples = self._interleave(ways, f"step {self.name}")
        return [
            compare(f"step.{self.name}.pyreft_over_cached", samples["pyreft"], samples["cached"]),
            compare(f"step.{self.name}.full_over_cached", samples["full"], samples["cached"]),
            *(row for way in ways for row in cost(f"step.{self.name}.{way}", samples[way])),
        ]

    def _buckets(self, cache: PrefixCache) -> list[Row]:
        ways = {str(count): timed(self._trainer(cache, count).step) for count in _BUCKETS}
        samples = self._interleave(ways, "step with 1, 2, 4 and 8 length buckets")
        return [compare(f"step.buckets.{count}_over_4", samples[count], samples["4"]) for count in ways]

    def _interleave(self, ways: dict[str, Callable[[int], Seconds]], title: str) -> dict[str, list[Seconds]]:
        return interleave(ways, self.options.repeats, title=title)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
