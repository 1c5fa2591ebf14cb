"""Variants of a base as it is deployed: int8 and 4-bit weights, and ReALLM's decomposition.

An adapter is trained on the full-precision base and scored on each variant, so a variant keeps the base's digest and is
told apart by its name. The linear layers of the decoder blocks change; embeddings, norms and the head stay as they are,
and are shared with the base, which is not touched.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from grun.config import BaseVariant, VariantKind
from grun.errors import ModelError
from grun.lm.blocks import block_list
from grun.lm.decomposition import decompose_layer
from grun.lm.frozen import FrozenLM
from grun.lm.quantised import quantise_int4, quantise_int8

__all__ = ["base_variant", "variant_of"]


def base_variant(lm: FrozenLM, kind: VariantKind) -> FrozenLM:
    """Return a base with its linear layers stored as `kind` says, with the default settings of that kind.

    Raises:
        ModelError: as :func:`variant_of`.
    """
    return variant_of(lm, BaseVariant(kind=kind))


def variant_of(lm: FrozenLM, variant: BaseVariant) -> FrozenLM:
    """Return a base with its linear layers stored as a variant says; the given base stays as it is.

    Raises:
        ModelError: the base is a variant itself, or has no linear layers in its blocks.
    """
    if lm.info.variant is not None:
        raise ModelError(
            f"a variant must be made of the full-precision base, got {lm.info.name!r} as {lm.info.variant}; load that base anew"
        )
    model = _copy_structure(lm.model)
    blocks = block_list(model)
    _conv1d_to_linear(blocks)
    layers = {name: module for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    if not layers:
        raise ModelError(
            f"a base must have linear layers in its blocks to be quantised, got {type(model).__name__} without; "
            "score it in full precision: `model.quantization: none` and `model.decomposition: none`"
        )
    change = _CHANGES[variant.kind]
    for name, layer in layers.items():
        change(layer, name, variant)
    model.requires_grad_(False)
    return replace(lm, model=model, blocks=tuple(blocks), info=replace(lm.info, variant=variant.name))


_CHANGES: dict[VariantKind, Callable[[nn.Linear, str, BaseVariant], None]] = {
    "int8": lambda layer, _name, _variant: quantise_int8(layer),
    "int4": lambda layer, _name, _variant: quantise_int4(layer),
    "nf4": decompose_layer,
    "lowrank_nf4": decompose_layer,
}


def _copy_structure(model: PreTrainedModel) -> PreTrainedModel:
    """Copy all modules of a model, and none of its tensors: hooks on the copy are its own, and memory is not taken twice."""
    tensors: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, dict(tensors))


def _conv1d_to_linear(blocks: nn.ModuleList) -> None:
    """Put linear layers in the place of GPT-2's, which are the same with the weight transposed."""
    for parent in list(blocks.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv1D):
                width, outputs = child.weight.shape
                linear = nn.Linear(width, outputs, device="meta")
                linear.weight, linear.bias = nn.Parameter(child.weight.T.contiguous(), requires_grad=False), child.bias
                setattr(parent, name, linear)
