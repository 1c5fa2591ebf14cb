"""`gpu`: a training step at the shape of Llama-3.1-8B in bfloat16 on a CUDA device, and how much of the device it uses.

Weights are random and drawn on the device; nothing is downloaded.
"""

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grun.data.batches import ForgetRetainBatch
from grun.errors import ClusterError
from grun.lm import BaseInfo, FrozenLM, freeze
from grun.objectives import Needs
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, compare, cost, interleave, plain, timed
from pipelines.benchmarks.workload import Geometry, Trainer, Training, make_recipe, make_tokenizer, new_training, read_rows
from pipelines.console import note

__all__ = ["run"]

_SHAPE: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
_TOY = {**_SHAPE, "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
_NUM_BATCHES = 2


def run(options: Options) -> Report:
    """Measure GD and NPO, full and cached, at 16+16 TOFU rows.

    Raises:
        ClusterError: there is no CUDA device.
        DataError: TOFU is not where it should be.
    """
    if not torch.cuda.is_available():
        raise ClusterError(
            "benchmark `gpu` needs a CUDA device, got a machine or a torch without one; run it on a GPU with a CUDA build of torch"
        )
    recipes = {name: make_recipe(options, name).replace({"model": {"dtype": "bfloat16"}}) for name in ("gd", "npo")}
    splits = read_rows(options)
    shape = _TOY if options.tiny else _SHAPE
    lm = _random_lm(shape, make_tokenizer(splits, Geometry(vocab_size=2048 if options.tiny else 8192)))
    ceiling = _matmul_flops(options.repeats)
    rows = [plain("gpu.matmul_ceiling", ceiling / 1e12, "TFLOP/s")]
    for name, recipe in recipes.items():
        rows += _measure(name, new_training(lm, recipe, splits), ceiling, options)
    title = "A training step on a GPU: Llama-3.1-8B's shape, bfloat16"
    return Report(
        rows, ratio_figure(title, rows), {"shape": shape, "forget_rows": recipes["gd"].train.batch_size, "dtype": "bfloat16"}
    )


def _random_lm(shape: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> FrozenLM:
    """Draw a base on the device, in bfloat16 from the start: in float32 it would not fit beside itself."""
    note("gpu: drawing a random base on the device")
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return freeze(model, tokenizer, BaseInfo("random", None, "0" * 64))


def _matmul_flops(repeats: int) -> float:
    """Operations a second of a large bfloat16 product: what this device gives at its best."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    samples = interleave(
        {"product": timed(lambda _index: [left @ right for _ in range(20)], sync=torch.cuda.synchronize)},
        repeats,
        title="matmul ceiling",
    )["product"]
    return 20 * 2 * 8192**3 / min(sample.wall for sample in samples)


def _measure(name: str, training: Training, ceiling: float, options: Options) -> list[Row]:
    """One objective: what a step takes, tokens a second, use of the device, peak memory."""
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        note(f"gpu {name}: building the cache")
        cache = training.build_cache(training.examples(_NUM_BATCHES), Path(folder))
        trainers = {"full": training.full(_NUM_BATCHES), "cached": training.cached(cache, _NUM_BATCHES)}
        ways = {way: timed(trainer.step, sync=torch.cuda.synchronize) for way, trainer in trainers.items()}
        samples = interleave(ways, options.repeats, title=f"gpu {name}")
        peaks = {way: _peak_bytes(trainer) for way, trainer in trainers.items()}
    batches = [training.task.sampler.batch(index % _NUM_BATCHES) for index in range(options.repeats)]
    rows = [compare(f"gpu.{name}.full_over_cached", samples["full"], samples["cached"], wall_only=True)]
    for way, taken in samples.items():
        tokens = [_num_tokens(batch, cached=False) / sample.wall for batch, sample in zip(batches, taken, strict=True)]
        flops = [_flops(training, batch, way) / sample.wall for batch, sample in zip(batches, taken, strict=True)]
        rows += [
            *(row for row in cost(f"gpu.{name}.{way}", taken) if row.unit == "s"),
            plain(f"gpu.{name}.{way}.tokens_per_second", statistics.median(tokens), "1/s"),
            plain(f"gpu.{name}.{way}.use", statistics.median(flops) / 1e12, "TFLOP/s", ceiling / 1e12),
            plain(f"gpu.{name}.{way}.peak_memory", peaks[way] / 1e9, "GB"),
        ]
    return rows


def _peak_bytes(trainer: Trainer) -> int:
    """The most that the device held in one more step, base included."""
    torch.cuda.reset_peak_memory_stats()
    trainer.step(0)
    return torch.cuda.max_memory_allocated()


def _num_tokens(batch: ForgetRetainBatch, *, cached: bool) -> int:
    """Tokens of a batch without padding; those that a cached pass runs: the last prompt token and the answer without its end."""
    rows = (*batch.forget, *batch.retain)
    return sum(example.num_answer_tokens if cached else len(example.ids) for example in rows)


def _flops(training: Training, batch: ForgetRetainBatch, way: str) -> float:
    """Operations that a step asks for: products with weights, without attention and padding; a lower bound of what is done.

    Forward, two for each weight and token; backward to the edits, as many again above the cut, as no weight learns.
    """
    lm, objective = training.lm, training.task.objective
    block = sum(p.numel() for p in lm.blocks[0].parameters())
    above = (lm.num_layers - 1 - training.cut) * block
    head = sum(p.numel() for p in lm.head.parameters()) * _num_tokens(batch, cached=True)
    needs = objective.needs_forget | objective.needs_retain
    if way == "cached":
        return 2 * 2 * (above * _num_tokens(batch, cached=True) + head)
    tokens = _num_tokens(batch, cached=False)
    forwards = 2 if Needs.REFERENCE_NLL in needs else 1
    return 2 * (forwards * (lm.num_layers * block * tokens + head) + above * tokens + head)
