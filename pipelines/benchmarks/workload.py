"""The workload: random bases of a given shape, TOFU's own rows and lengths, and the way a step is trained.

Weights are random, as no cost depends on them. The vocabulary is that of a tokenizer trained on TOFU; its head is to
the blocks (a twelfth) what that of Llama-3.1-8B is to its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grun.config import Recipe, TaughtModelConfig
from grun.data.batches import ForgetRetainBatch
from grun.data.prompts import Example
from grun.data.records import QARecord, Record
from grun.data.splits import Splits, make_request, read_splits
from grun.interventions import build_adapter
from grun.lm import BaseInfo, CachedPass, FrozenLM, FullPass, Pass, PrefixCache, freeze
from grun.lm.cache_build import cut_into_shards, write_shard
from grun.lm.prefix_cache import make_spec
from grun.lm.teach import train_tokenizer
from grun.objectives import ObjectiveInputs
from grun.training import AdapterOptimizer, Task, TorchEngine, build_task
from grun.training.step import forward
from pipelines.benchmarks.harness import Options

__all__ = [
    "OBJECTIVES",
    "Geometry",
    "Trainer",
    "Training",
    "lengthened",
    "make_recipe",
    "make_tokenizer",
    "new_lm",
    "new_training",
    "read_rows",
]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "gd": {"forget": {"kind": "gd"}, "retain": {"kind": "ce", "weight": 2.0}},
    "npo": {"forget": {"kind": "npo"}, "retain": {"kind": "ce"}},
    "idk": {"forget": {"kind": "idk"}, "retain": {"kind": "ce"}},
    "rmu": {"forget": {"kind": "rmu"}, "retain": {"kind": "hidden"}},
}
"""The paper's objectives with its weights (arXiv:2502.17823), RMU in the recipe's defaults."""


@dataclass(frozen=True)
class Geometry:
    """Shape of a Llama."""

    num_layers: int = 16
    """Decoder blocks."""
    hidden_size: int = 512
    """Width of the residual stream; inside the blocks, eight thirds of it."""
    num_heads: int = 8
    vocab_size: int = 8192
    """Of the tokenizer as well."""
    context: int = 1024

    @classmethod
    def toy(cls) -> "Geometry":
        """Four blocks, 64 wide."""
        return cls(num_layers=4, hidden_size=64, num_heads=4, vocab_size=1024)


def make_recipe(options: Options, objective: str, *, batch_size: int = 16, **train: Any) -> Recipe:
    """The recipe of a workload: forget05 and retain95, the default adapter (depths 20, 25, 31 of 32, rank 4, linear gate)."""
    return Recipe.parse(
        {
            "data": {"kind": "tofu", "path": str(options.data.absolute())},
            "objective": OBJECTIVES[objective],
            "train": {"batch_size": 4 if options.tiny else batch_size, "learning_rate": 4e-3, "epochs": 40, **train},
        }
    )


def read_rows(options: Options) -> Splits:
    """Read forget05 and retain95; at toy size, a few of their rows.

    Raises:
        DataError: TOFU is not where it should be.
    """
    splits = read_splits(make_recipe(options, "gd").data)
    return replace(splits, forget=splits.forget[:40], retain=splits.retain[:200]) if options.tiny else splits


def make_tokenizer(splits: Splits, geometry: Geometry) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the rows themselves."""
    config = TaughtModelConfig(vocab_size=geometry.vocab_size, context=geometry.context)
    return train_tokenizer(config, [*splits.forget, *splits.retain])


def new_lm(geometry: Geometry, tokenizer: PreTrainedTokenizerFast) -> FrozenLM:
    """Draw a base of a shape, always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=geometry.vocab_size,
                hidden_size=geometry.hidden_size,
                intermediate_size=geometry.hidden_size * 8 // 3,
                num_hidden_layers=geometry.num_layers,
                num_attention_heads=geometry.num_heads,
                num_key_value_heads=geometry.num_heads,
                max_position_embeddings=geometry.context,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    return freeze(model, tokenizer, BaseInfo("random", None, "0" * 64))


def lengthened(splits: Splits, tokenizer: PreTrainedTokenizerFast, num_tokens: int) -> Splits:
    """Put a document of about `num_tokens` tokens before every question: answers of other rows, from another place each time."""
    texts = [record.answer for record in (*splits.retain, *splits.forget) if isinstance(record, QARecord)]
    stream: list[int] = tokenizer(" ".join(texts), verbose=False)["input_ids"]
    step = 997  # neighbouring rows get different documents

    def longer(records: Sequence[Record], first: int) -> tuple[Record, ...]:
        rows: list[Record] = []
        for number, record in enumerate(records, start=first):
            assert isinstance(record, QARecord)
            start = number * step % (len(stream) - num_tokens)
            document = tokenizer.decode(stream[start : start + num_tokens])
            rows.append(replace(record, question=f"{document}\n{record.question}", paraphrased_question=None))
        return tuple(rows)

    return replace(splits, forget=longer(splits.forget, 0), retain=longer(splits.retain, len(splits.forget)))


@dataclass(frozen=True)
class Training:
    """A task on a base."""

    lm: FrozenLM
    recipe: Recipe
    task: Task

    @property
    def cut(self) -> int:
        """The shallowest edited block."""
        return self.task.adapter.layers[0]

    def examples(self, steps: int) -> list[Example]:
        """Every row of the first batches, once."""
        batches = [self.task.sampler.batch(step) for step in range(steps)]
        return list(dict.fromkeys(example for batch in batches for example in (*batch.forget, *batch.retain)))

    def build_cache(self, examples: Sequence[Example], folder: Path) -> PrefixCache:
        """Build and open the prefix cache of some rows, for this adapter and objective."""
        spec = make_spec(
            examples,
            base_digest=self.lm.info.digest,
            dtype="bfloat16" if self.lm.model.dtype == torch.bfloat16 else "float32",
            template={},
            cuts=[self.cut],
            reference_layers=[] if self.task.read_layer is None else [self.task.read_layer],
            num_layers=self.lm.num_layers,
        )
        for number, rows in enumerate(cut_into_shards(examples, 256)):
            write_shard(self.lm, spec, rows, folder, number, batch_size=16)
        return PrefixCache.open_shards(folder, spec)

    def full(self, num_batches: int, num_buckets: int = 4) -> "Trainer":
        """Train by full passes, on the first batches in turn."""
        return Trainer(self, FullPass(self.lm, num_buckets), num_batches)

    def cached(self, cache: PrefixCache, num_batches: int) -> "Trainer":
        """Train from a cache that holds the first batches, on these in turn."""
        return Trainer(self, CachedPass(self.lm.above(self.cut), cache), num_batches)


def new_training(lm: FrozenLM, recipe: Recipe, splits: Splits) -> Training:
    """Build the task of a recipe on a base."""
    return Training(lm, recipe, build_task(recipe, splits, make_request(recipe.request, recipe.data, splits), lm))


class Trainer:
    """One way to train: how a batch becomes what the objective sees. Has an adapter and an optimizer of its own."""

    def __init__(self, training: Training, base: Pass, num_batches: int) -> None:
        """Build the same untrained adapter whatever the way."""
        lm, recipe = training.lm, training.recipe
        adapter = build_adapter(recipe.adapter, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=recipe.seed)
        self.adapter = adapter.to(lm.device)
        self.task = training.task
        self.optimizer = AdapterOptimizer(self.adapter, recipe.train, total_steps=self.task.optimizer.total_steps)
        self.engine = TorchEngine(base)
        self.num_batches = num_batches
        self.inputs: Callable[[ForgetRetainBatch], ObjectiveInputs] = self._forward
        """From a batch to what the objective sees."""

    def step(self, index: int) -> None:
        """One training step, optimizer included."""
        number = index % self.num_batches
        output = self.task.objective(self.inputs(self.task.sampler.batch(number)), number + 1)
        self.engine.backward(output.loss)
        self.optimizer.step(self.engine, number, {"train/loss": output.loss, **output.terms})

    def gradient(self) -> Tensor:
        """The adapter's whole gradient on the first batch, as one vector; the adapter stays as it is."""
        self.task.objective(self.inputs(self.task.sampler.batch(0)), 1).loss.backward()
        flat = torch.cat([p.grad.reshape(-1) for p in self.adapter.parameters() if p.grad is not None])
        self.adapter.zero_grad(set_to_none=True)
        return flat

    def _forward(self, batch: ForgetRetainBatch) -> ObjectiveInputs:
        return forward(self.engine.base, self.adapter, batch, self.task.objective, read_layer=self.task.read_layer)
