"""Build a prefix cache: full forward passes of the whole base, shard by shard, in any order and on any number of processes.

A shard that is there is not computed again, so an interrupted build goes on where it was.
"""

import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from grun.config import AdapterConfig
from grun.data.batches import collate
from grun.data.prompts import Example
from grun.errors import CacheError
from grun.interventions import Adapter, build_adapter
from grun.lm.frozen import FrozenLM
from grun.lm.hooks import narrow_input
from grun.lm.passes import CachedPass, FullPass, Pass
from grun.lm.prefix_cache import (
    CACHE_FILE,
    CacheProbe,
    CacheSpec,
    CacheState,
    PrefixCache,
    ShardIndex,
    file_digest,
    prompt_digest,
    sequence_digest,
    shard_path,
)
from grun.writing import move_into_place, telling, write_text

__all__ = ["cache_bytes", "cut_into_shards", "finish", "probe_cache", "write_shard"]


def cache_bytes(spec: CacheSpec, *, key_value_size: int, hidden_size: int) -> int:
    """Size of a cache in bytes before it is built; file headers and indices, some kilobytes a shard, come on top.

    Args:
        key_value_size: numbers in the key (or value) of one token in one block: key heads times their width.
    """
    width = {"float32": 4, "bfloat16": 2}[spec.dtype]
    prefixes = spec.prefix_tokens * (spec.num_layers - 1 - spec.cut) * 2 * key_value_size * width
    suffixes = spec.answer_tokens * (len(spec.state_layers) * hidden_size * width + 4)
    return prefixes + suffixes


def cut_into_shards(examples: Iterable[Example], sequences_per_shard: int) -> list[list[Example]]:
    """Divide examples, each once, into shards; the answers of one prompt stay together, and similar lengths too."""
    by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], Example]] = {}
    for example in examples:
        by_prompt.setdefault(example.prompt_ids, {})[example.ids] = example
    shards: list[list[Example]] = [[]]
    for prompt in sorted(by_prompt, key=lambda ids: (len(ids), ids)):
        if len(shards[-1]) >= sequences_per_shard:
            shards.append([])
        shards[-1] += by_prompt[prompt].values()
    return shards


@torch.no_grad()
def write_shard(
    lm: FrozenLM,
    spec: CacheSpec,
    examples: Sequence[Example],
    folder: Path,
    number: int,
    *,
    batch_size: int,
    on_rows: Callable[[int], None] | None = None,
) -> None:
    """Compute and write one shard, whole or not at all; nothing is done where it is there already.

    Args:
        examples: one element of :func:`cut_into_shards`.
        on_rows: called with the number of rows just computed.

    Raises:
        DiskError: there is no room for it, or the like.
        CacheError: the base is a variant; a cache is named by the base on disk, and holds what that one computes.
    """
    if lm.info.variant is not None:
        raise CacheError(
            f"a prefix cache must be built from the full-precision base, got a base as {lm.info.variant}; set `cache.mode: off`"
        )
    path = shard_path(folder, number)
    if path.with_suffix(".json").is_file():
        return
    shard = _Shard(lm, spec)
    for start in range(0, len(examples), batch_size):
        rows = examples[start : start + batch_size]
        shard.add(rows)
        if on_rows is not None:
            on_rows(len(rows))
    shard.write(path)


def finish(folder: Path, spec: CacheSpec, probe: CacheProbe) -> None:
    """Declare a cache whose shards are all there finished."""
    write_text(folder / CACHE_FILE, CacheState(spec=spec, probe=probe).model_dump_json(indent=2))


def probe_cache(lm: FrozenLM, cache: PrefixCache, examples: Sequence[Example]) -> CacheProbe:
    """Run a few rows both ways, with an untrained adapter at the shallowest cut and at the last block.

    Args:
        lm: the whole base.
    """
    cut, last = cache.spec.cut, lm.num_layers - 1
    config = AdapterConfig(layers=tuple(sorted({cut, last})), rank=min(4, lm.hidden_size))
    adapter = build_adapter(config, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=0).to(lm.device)
    full, cached = (_loss_and_gradient(way, adapter, examples) for way in (FullPass(lm), CachedPass(lm.above(cut), cache)))
    return CacheProbe(
        loss_difference=abs(full[0] - cached[0]),
        gradient_rel_error=float((full[1] - cached[1]).norm() / full[1].norm()),
    )


def _loss_and_gradient(way: Pass, adapter: Adapter, examples: Sequence[Example]) -> tuple[float, Tensor]:
    adapter.zero_grad(set_to_none=True)
    answers = way.answers(examples, adapter)
    assert answers.gate_logits is not None
    loss = answers.nll.mean() + F.softplus(answers.gate_logits).mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.reshape(-1) for p in adapter.parameters() if p.grad is not None])


class _Shard:
    """The tensors of a shard as they come in."""

    def __init__(self, lm: FrozenLM, spec: CacheSpec) -> None:
        self.lm = lm
        self.spec = spec
        self.layers = range(spec.cut + 1, spec.num_layers)
        self.tensors: dict[str, list[Tensor]] = {"nll": []}
        self.prompts: dict[tuple[int, ...], int] = {}
        self.sequences: list[tuple[str, int, int]] = []
        self.heads = (1, 1)

    def add(self, examples: Sequence[Example]) -> None:
        """Run some rows through the whole base."""
        batch = collate(examples, pad_id=self.lm.pad_id).to(self.lm.device)
        # a cache without a configuration keeps every key, also in blocks with a sliding window
        cache = DynamicCache()
        states: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer in self.spec.state_layers:
                handle = self.lm.blocks[layer].register_forward_hook(_keep(states, layer))
                stack.callback(handle.remove)
            stack.enter_context(narrow_input(self.lm.head, batch.predicts))
            logits = self.lm.model(**batch.model_inputs(), past_key_values=cache, use_cache=True).logits
        self._append("nll", F.cross_entropy(logits.float(), batch.targets, reduction="none"))
        for layer, values in states.items():
            self._append(f"states.{layer}", values[batch.predicts])
        for index, example in enumerate(examples):
            if example.prompt_ids not in self.prompts:
                self.prompts[example.prompt_ids] = len(self.prompts)
                self._append_prefix(cache, index, example.num_prompt_tokens - 1)
            place = self.prompts[example.prompt_ids]
            self.sequences.append((sequence_digest(example), place, example.num_answer_tokens))

    def _append_prefix(self, cache: DynamicCache, row: int, length: int) -> None:
        for layer in self.layers:
            for kind in ("keys", "values"):
                values: Tensor = getattr(cache.layers[layer], kind)[row, :, :length]
                self.heads = (values.shape[0], values.shape[2])
                self._append(f"{kind}.{layer}", values.reshape(-1))

    def _append(self, name: str, values: Tensor) -> None:
        self.tensors.setdefault(name, []).append(values.detach().cpu())

    def write(self, path: Path) -> None:
        """Write tensors and index, the index last."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        tensors = {name: torch.cat(parts).contiguous() for name, parts in self.tensors.items()}
        try:
            with telling(path):
                save_file(tensors, scratch, metadata={"heads": f"{self.heads[0]} {self.heads[1]}"})
            index = ShardIndex(
                sha256=file_digest(scratch),
                num_bytes=scratch.stat().st_size,
                prompts=tuple((prompt_digest(ids), len(ids) - 1) for ids in self.prompts),
                sequences=tuple(self.sequences),
            )
            with telling(path):
                move_into_place(scratch, path)
            write_text(path.with_suffix(".json"), index.model_dump_json())
        finally:
            scratch.unlink(missing_ok=True)


def _keep(states: dict[int, Tensor], layer: int) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states[layer] = output[0] if isinstance(output, tuple) else output

    return hook
