"""The workload: random bases of a given shape, TOFU's own rows and lengths, and the way a step is trained.

Weights are random, as no cost depends on them. The vocabulary is that of a tokenizer trained on TOFU; its head is to
the blocks (a twelfth) what that of Llama-3.1-8B is to its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
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
from grun.lm import BaseInfo, FrozenLM, Pass, PrefixCache, freeze
from grun.lm.cache_build import cut_into_shards, finish, probe_cache, write_shard
from grun.lm.prefix_cache import make_spec
from grun.lm.teach import train_tokenizer
from grun.objectives import ObjectiveInputs
from grun.training import AdapterOptimizer, Task, TorchEngine, build_task
from grun.training.step import forward

__all__ = [
    "Geometry",
    "OBJECTIVES",
    "Trainer",
    "build_cache",
    "lengthened",
    "make_recipe",
    "make_tokenizer",
    "new_lm",
    "new_task",
    "step_examples",
    "tofu_splits",
]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "gd": {"forget": {"kind": "gd"}, "retain": {"kind": "ce", "weight": 2.0}},
    "npo": {"forget": {"kind": "npo"}, "retain": {"kind": "ce"}},
    "idk": {"forget": {"kind": "idk"}, "retain": {"kind": "ce"}},
    "rmu": {"forget": {"kind": "rmu"}, "retain": {"kind": "hidden"}},
}
"""The paper's objectives with its weights (arXiv:2502.17823)."""


@dataclass(frozen=True)
class Geometry:
    """Shape of a Llama."""

    num_layers: int = 16
    hidden_size: int = 512
    num_heads: int = 8
    vocab_size: int = 8192
    context: int = 1024

    @classmethod
    def toy(cls) -> "Geometry":
        """Four blocks, 64 wide."""
        return cls(num_layers=4, hidden_size=64, num_heads=4, vocab_size=1024)


def tofu_splits(folder: Path) -> Splits:
    """Read forget05 and retain95.

    Raises:
        DataError: the folder does not hold TOFU's files.
    """
    return read_splits(Recipe.parse({"data": {"kind": "tofu", "path": str(folder)}}).data)


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
    step = 997  # coprime to nothing in particular: neighbouring rows get different documents

    def longer(records: Sequence[Record], first: int) -> tuple[Record, ...]:
        rows: list[Record] = []
        for number, record in enumerate(records, start=first):
            assert isinstance(record, QARecord)
            start = number * step % (len(stream) - num_tokens)
            document = tokenizer.decode(stream[start : start + num_tokens])
            rows.append(replace(record, question=f"{document}\n{record.question}", paraphrased_question=None))
        return tuple(rows)

    return replace(splits, forget=longer(splits.forget, 0), retain=longer(splits.retain, len(splits.forget)))


def make_recipe(data: Path, objective: Mapping[str, Any], *, batch_size: int = 16, **sections: Any) -> Recipe:
    """The recipe of a workload: the default adapter (relative depths 20, 25, 31 of 32, rank 4, linear gate)."""
    return Recipe.parse(
        {
            "name": "benchmark",
            "data": {"kind": "tofu", "path": str(data)},
            "objective": objective,
            "train": {"batch_size": batch_size, "learning_rate": 4e-3, "epochs": 40, **sections.pop("train", {})},
            **sections,
        }
    )


def new_task(recipe: Recipe, splits: Splits, lm: FrozenLM) -> Task:
    """The task of a recipe on a base."""
    return build_task(recipe, splits, make_request(recipe.request, recipe.data, splits), lm)


def step_examples(task: Task, steps: int) -> list[Example]:
    """Every row of the first batches, once."""
    batches = [task.sampler.batch(step) for step in range(steps)]
    return list(dict.fromkeys(example for batch in batches for example in (*batch.forget, *batch.retain)))


def build_cache(lm: FrozenLM, task: Task, examples: Sequence[Example], folder: Path) -> PrefixCache:
    """Build and open the prefix cache of some rows, for a task's adapter and objective."""
    spec = make_spec(
        examples,
        base_digest=lm.info.digest,
        dtype=str(lm.model.dtype).removeprefix("torch."),
        template={},
        cuts=task.adapter.layers[:1],
        reference_layers=[] if task.read_layer is None else [task.read_layer],
        num_layers=lm.num_layers,
    )
    for number, rows in enumerate(cut_into_shards(examples, 256)):
        write_shard(lm, spec, rows, folder, number, batch_size=16)
    cache = PrefixCache.open_shards(folder, spec)
    finish(folder, spec, probe_cache(lm, cache, list(islice(examples, 4))))
    return cache


class Trainer:
    """One way to train: how a batch becomes what the objective sees. Has an adapter and an optimizer of its own."""

    def __init__(self, task: Task, recipe: Recipe, base: Pass, *, num_batches: int) -> None:
        """Build the same untrained adapter whatever the way.

        Args:
            num_batches: the batches that steps take in turn; a cache holds no others.
        """
        adapter = build_adapter(recipe.adapter, hidden_size=base.lm.hidden_size, num_layers=base.lm.num_layers, seed=recipe.seed)
        self.adapter = adapter.to(base.lm.device)
        self.optimizer = AdapterOptimizer(self.adapter, recipe.train, total_steps=task.optimizer.total_steps)
        self.task = task
        self.engine = TorchEngine(base)
        self.num_batches = num_batches
        self.inputs: Callable[[ForgetRetainBatch], ObjectiveInputs] = self._ours

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

    def _ours(self, batch: ForgetRetainBatch) -> ObjectiveInputs:
        return forward(self.engine.base, self.adapter, batch, self.task.objective, read_layer=self.task.read_layer)
