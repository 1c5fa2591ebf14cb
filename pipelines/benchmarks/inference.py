"""`inference`: what an adapter costs when a model is served, in prefill and in decoding.

Generation is the served one (:meth:`IntervenedLM.generate`); its forward passes are told apart by when each begins.
The edits act at prefill only, but their hooks stay attached while decoding, and that is measured.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from grun.config import PromptConfig
from grun.data.prompts import PromptEncoder
from grun.data.records import QARecord
from grun.data.splits import Splits
from grun.lm import FrozenLM, IntervenedLM
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, Seconds, compare, cost, interleave
from pipelines.benchmarks.workload import Geometry, make_recipe, make_tokenizer, new_lm, new_training, read_rows

__all__ = ["BATCHES", "Generation", "generate_with", "run"]

BATCHES = (1, 32)
"""Prompts at a time."""


@dataclass(frozen=True)
class Generation:
    """What one generation took."""

    prefill: Seconds
    """The first forward pass, up to the start of the second."""
    decode: Seconds
    """A later forward pass, the mean of all."""


def run(options: Options) -> Report:
    """Compare generation with an untrained adapter (threshold 0.5) with the base's own, one prompt and 32 at a time.

    Raises:
        DataError: TOFU is not where it should be.
    """
    recipe = make_recipe(options, "gd")

    def models(lm: FrozenLM, splits: Splits) -> dict[str, IntervenedLM]:
        adapter = new_training(lm, recipe, splits).task.adapter
        return {"base": IntervenedLM(lm), "adapter": IntervenedLM(lm, adapter, threshold=recipe.adapter.gate_threshold)}

    return generate_with(options, models, _rows, "Generation with an adapter over the base alone")


def generate_with(
    options: Options,
    models: Callable[[FrozenLM, Splits], Mapping[str, IntervenedLM]],
    rows_of: Callable[[int, dict[str, list[Generation]]], list[Row]],
    title: str,
    **workload: object,
) -> Report:
    """Time the generation of several models on one random base, one prompt and 32 at a time.

    Args:
        models: what is compared, by name, made of the base.
        rows_of: the rows of a batch size and of what each model took.
        workload: what belongs into the report beside the base's shape.

    Raises:
        DataError: TOFU is not where it should be.
    """
    geometry = Geometry.toy() if options.tiny else Geometry()
    splits = read_rows(options)
    lm = new_lm(geometry, make_tokenizer(splits, geometry))
    _never_end(lm)
    compared = models(lm, splits)
    encoder = PromptEncoder(lm.tokenizer, PromptConfig(), context=lm.context)
    questions = [record.question for record in splits.forget if isinstance(record, QARecord)]
    new_tokens = 8 if options.tiny else 33
    rows: list[Row] = []
    for size in BATCHES:
        prompts = [encoder.prompt_ids(question) for question in questions[:size]]
        ways = {name: _generation(model, prompts, new_tokens) for name, model in compared.items()}
        rows += rows_of(size, interleave(ways, options.repeats, title=f"generating, {size} prompt(s) at a time"))
    figure = ratio_figure(f"{title}: {geometry.num_layers} blocks, {geometry.hidden_size} wide", rows)
    return Report(rows, figure, {"geometry": vars(geometry), "new_tokens": new_tokens, "batches": BATCHES, **workload})


def _rows(size: int, samples: dict[str, list[Generation]]) -> list[Row]:
    rows: list[Row] = []
    for phase in ("prefill", "decode"):
        base, adapter = ([getattr(sample, phase) for sample in samples[name]] for name in ("base", "adapter"))
        rows.append(compare(f"inference.{phase}_over_base.batch_{size}", adapter, base))
        if size == max(BATCHES):
            rows.append(compare(f"inference.{phase}_over_base", adapter, base))
        rows += [
            row
            for name, taken in (("base", base), ("adapter", adapter))
            for row in cost(f"inference.{phase}.batch_{size}.{name}", taken)
        ]
    return rows


def _generation(model: IntervenedLM, prompts: Sequence[Sequence[int]], new_tokens: int) -> Callable[[int], Generation]:
    """Time a generation, which is to have so many tokens (:func:`_never_end`)."""

    def generate(_index: int) -> Generation:
        with _starts(model.lm.model) as starts:
            model.generate(prompts, max_new_tokens=new_tokens)
        assert len(starts) == new_tokens, f"{len(starts)} forward passes for {new_tokens} tokens"
        # what follows the last start also makes texts of the tokens, and is left out
        return Generation(_between(starts[0], starts[1]), _between(starts[1], starts[-1]) / (new_tokens - 2))

    return generate


def _between(start: Seconds, end: Seconds) -> Seconds:
    return Seconds(end.cpu - start.cpu, end.wall - start.wall)


@contextmanager
def _starts(model: nn.Module) -> Iterator[list[Seconds]]:
    """Note when each forward pass begins."""
    starts: list[Seconds] = []

    def mark(_module: nn.Module, _args: Any) -> None:
        starts.append(Seconds(time.process_time(), time.perf_counter()))

    handle = model.register_forward_pre_hook(mark)
    try:
        yield starts
    finally:
        handle.remove()


@torch.no_grad()
def _never_end(lm: FrozenLM) -> None:
    """Let a random base never choose the end of text, so that every generation has the same length."""
    end = lm.tokenizer.eos_token_id
    assert isinstance(end, int)
    head: Any = lm.head
    head.weight[end] = 0  # a logit of 0, where the greatest of thousands of random ones is above it
