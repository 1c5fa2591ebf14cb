"""`step`: what a training step costs, by pyreft as the official code does it, by full passes, and from the prefix cache."""

import tempfile
from pathlib import Path

from torch import Tensor

from grun.lm import PrefixCache
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, compare, cost, interleave, plain, timed
from pipelines.benchmarks.pyreft_step import PyreftInputs
from pipelines.benchmarks.workload import (
    OBJECTIVES,
    Geometry,
    Trainer,
    Training,
    lengthened,
    make_recipe,
    make_tokenizer,
    new_lm,
    new_training,
    read_rows,
)
from pipelines.console import note

__all__ = ["run"]

_NUM_BATCHES = 2
"""Batches that the repeats take in turn; behind long documents, each takes 300 MB of cache."""
_LONG_TOKENS = 512
_BUCKETS = (1, 2, 4, 8)


def run(options: Options) -> Report:
    """Measure every objective, GD also with other numbers of length buckets and behind long documents.

    Raises:
        DataError: TOFU is not where it should be.
    """
    geometry = Geometry.toy() if options.tiny else Geometry()
    splits = read_rows(options)
    tokenizer = make_tokenizer(splits, geometry)
    lm = new_lm(geometry, tokenizer)
    cases = {name: (name, splits) for name in OBJECTIVES}
    cases["gd_long"] = ("gd", lengthened(splits, tokenizer, 48 if options.tiny else _LONG_TOKENS))
    rows: list[Row] = []
    for name, (objective, records) in cases.items():
        first = len(rows)
        training = new_training(lm, make_recipe(options, objective), records)
        examples = training.examples(_NUM_BATCHES)
        lengths = sorted(len(example.ids) for example in examples)
        rows.append(plain(f"step.{name}.median_row", lengths[len(lengths) // 2], "tokens"))
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            note(f"step {name}: building the cache of {len(examples)} rows, {lengths[0]} to {lengths[-1]} tokens long")
            cache = training.build_cache(examples, Path(folder))
            rows += [*_gradients(name, _trainers(training, cache)), *_costs(name, _trainers(training, cache), options)]
            rows += _buckets(training, options) if name == "gd" else []
        # the whole takes a while, and may be stopped once enough was seen
        note("; ".join(f"{row.name} {row.ratio:.3g}" for row in rows[first:] if row.ratio is not None))
    title = f"A training step: {geometry.num_layers} blocks, {geometry.hidden_size} wide, CPU time"
    return Report(
        rows, ratio_figure(title, rows), {"geometry": vars(geometry), "forget_rows": make_recipe(options, "gd").train.batch_size}
    )


def _trainers(training: Training, cache: PrefixCache) -> dict[str, Trainer]:
    """The three ways, each with a new adapter."""
    pyreft = training.full(_NUM_BATCHES)
    pyreft.inputs = PyreftInputs(pyreft.adapter, training.lm, training.task.objective, training.task.read_layer)
    return {"full": training.full(_NUM_BATCHES), "cached": training.cached(cache, _NUM_BATCHES), "pyreft": pyreft}


def _gradients(name: str, trainers: dict[str, Trainer]) -> list[Row]:
    """How far the gradients of an untrained adapter are apart, on one batch."""
    full, cached, pyreft = (trainers[way].gradient() for way in ("full", "cached", "pyreft"))
    return [
        plain(f"step.{name}.gradient_rel_error", _distance(cached, full), ""),
        plain(f"step.{name}.pyreft_gradient_rel_error", _distance(pyreft, full), ""),
    ]


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _costs(name: str, trainers: dict[str, Trainer], options: Options) -> list[Row]:
    ways = {way: timed(trainer.step) for way, trainer in trainers.items()}
    samples = interleave(ways, options.repeats, title=f"step {name}")
    return [
        compare(f"step.{name}.pyreft_over_cached", samples["pyreft"], samples["cached"]),
        compare(f"step.{name}.full_over_cached", samples["full"], samples["cached"]),
        *(row for way in ways for row in cost(f"step.{name}.{way}", samples[way])),
    ]


def _buckets(training: Training, options: Options) -> list[Row]:
    """Full passes in 1, 2, 4 and 8 batches of similar length; cached passes are packed and have none."""
    ways = {str(count): timed(training.full(_NUM_BATCHES, count).step) for count in _BUCKETS}
    samples = interleave(ways, options.repeats, title="full passes in 1, 2, 4 and 8 length buckets")
    return [compare(f"step.full_buckets.{count}_over_4", samples[count], samples["4"]) for count in ways]
