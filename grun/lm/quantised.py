"""Weights of 8 and 4 bits by torchao's own quantiser: weight only, symmetric, round to nearest.

    int8   one scale for each row of a weight (an output of the layer)
    int4   one scale for each group of 32 numbers of a row

Both run on the CPU and on GPUs, through the same code. Weights are multiplied out (integer times scale) when a layer is
called and the product is taken in the base's precision, so numbers are those of the deployed base, to rounding. int8
takes the memory that it does when deployed. The four-bit integers lie in a byte each: torchao's packed kernels need a GPU
and one more library, so what is measured here is what four bits do to the answers, not how fast or small they are.
"""

import torch
from torch import nn

__all__ = ["INT4_GROUP", "int4_group", "quantise_int4", "quantise_int8"]

INT4_GROUP = 32
"""Numbers that share a scale."""

_INT4: torch.dtype = getattr(torch, "int4")  # noqa: B009 - torch does not declare it


def quantise_int8(layer: nn.Linear) -> None:
    """Store a layer's weight (m, n) as int8 with m scales, in the place of the one that it has."""
    # transformers imports torchao as well; yet a run that quantises nothing shall not depend on it
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=_is_the_layer)


def quantise_int4(layer: nn.Linear) -> None:
    """Store a layer's weight (m, n) as 4-bit integers with a scale a group, in the place of the one that it has."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    config = IntxWeightOnlyConfig(weight_dtype=_INT4, granularity=PerGroup(int4_group(layer.in_features)))
    quantize_(layer, config, filter_fn=_is_the_layer)


def int4_group(width: int) -> int:
    """Numbers that share a scale in rows of some width: the most from 32 down to 16 that divide it, or else the whole row."""
    return next((size for size in range(INT4_GROUP, INT4_GROUP // 2 - 1, -1) if width % size == 0), width)


def _is_the_layer(module: nn.Module, _name: str) -> bool:
    return isinstance(module, nn.Linear)
