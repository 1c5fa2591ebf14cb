"""The DeepSpeed engine: ZeRO-3 shards the frozen base, and only that.

`deepspeed.initialize` without an optimizer gives ZeRO-3's parameter partitioning with its forward and backward hooks.
The adapter stays outside: plain replicated torch, so that no trainable tensor is ever partitioned, its arithmetic
is bit-exact in bf16, and a checkpoint loads on any number of workers. The only module that imports DeepSpeed.
"""

import os
from typing import Any

import torch
from torch import Tensor

from grun.config import ModelConfig
from grun.lm import CachedPass, FrozenLM, FullPass, PrefixCache, load_frozen_lm, resolve_folder
from grun.lm.frozen import read_shape
from grun.training import TorchEngine

__all__ = ["DeepSpeedEngine", "resident_share", "zero3_config"]


def zero3_config(*, dtype: str, hidden_size: int, layer_parameters: int) -> dict[str, Any]:
    """DeepSpeed settings that keep about three gathered blocks alive at a time.

    The default limit of a billion live parameters would gather a small or middle-sized base whole.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,  # asked for by the schema; the batches are ours
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {
            "stage": 3,
            # norms and biases stay whole: gathering them costs more than they weigh
            "stage3_param_persistence_threshold": 4 * hidden_size,
            "stage3_prefetch_bucket_size": max(1, layer_parameters // 6),
            "stage3_max_live_parameters": 3 * layer_parameters,
            "stage3_max_reuse_distance": 0,
        },
    }


class DeepSpeedEngine(TorchEngine):
    """A base of which every worker holds one part."""

    def __init__(self, model: ModelConfig, folder: str, cache: PrefixCache | None = None, cut: int | None = None) -> None:
        """Load the base sharded. torch.distributed must be initialised, and `LOCAL_RANK` set.

        Args:
            cache: a prefix cache; then only the blocks above `cut` are loaded.
        """
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        # the CPU accelerator would compile this op for most of a minute; it serves inference only
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False)
        shape = read_shape(resolve_folder(folder, model.revision))
        settings = zero3_config(dtype=model.dtype, hidden_size=shape.hidden_size, layer_parameters=shape.layer_parameters)
        # transformers keeps only a weak reference: while this lives, from_pretrained loads one module at a time into shards
        self._loading = HfDeepSpeedConfig(settings)
        lm = load_frozen_lm(folder, revision=model.revision, dtype=model.dtype, pad_token=model.pad_token, device=None, cut=cut)
        self._engine, *_ = deepspeed.initialize(model=lm.model, config=settings)
        # one batch a step: every further one would gather the base again
        super().__init__(FullPass(lm) if cache is None else CachedPass(lm, cache))

    def backward(self, loss: Tensor) -> None:
        """Autograd through the sharded base; ZeRO's hooks gather and release its blocks."""
        super().backward(loss)
        self._engine.optimizer.release_backward_leftovers()

    def close(self) -> None:
        """Detach ZeRO from the base."""
        self._engine.destroy()


def resident_share(lm: FrozenLM, num_parameters: int | None = None) -> float:
    """Share of the base's parameters that this worker holds between two steps (1.0 when nothing is sharded or skipped).

    Args:
        num_parameters: parameters of the whole base; None where `lm` is the whole.
    """
    held = total = 0
    for parameter in lm.model.parameters():
        shard = getattr(parameter, "ds_tensor", None)
        total += getattr(parameter, "ds_numel", parameter.numel())
        # between steps a sharded parameter is empty and its shard is what is held; a persistent one is whole
        held += parameter.numel() or (shard.numel() if shard is not None else 0)
    return held / (num_parameters or total)
