"""The shape of a model folder, for `plan`: counted on a skeleton that the model's own code builds without memory."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from grun.errors import ModelError
from grun.lm.blocks import block_list
from grun.lm.frozen import context_of, load_config, read_shape
from pipelines.benchmarks.plan_shapes import ModelShape

__all__ = ["read_model_shape"]


def read_model_shape(folder: Path) -> ModelShape:
    """Read the shape of a base from its `config.json` alone; no weights are needed.

    Raises:
        ModelError: there is no configuration of a decoder of equal, dense blocks.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"`--model.path` must be a folder with a config.json, got {str(folder)!r} without one; check the path")
    config = load_config(folder)
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # without memory nothing is the same by itself
    blocks, text, sizes = block_list(model), config.get_text_config(), read_shape(folder)
    matrices = {_count(block, matrices=True) for block in blocks}
    if len(matrices) != 1 or any(parameter.dim() > 2 for parameter in blocks[0].parameters()):
        raise ModelError(
            f"`plan` calculates with blocks that are all alike and dense, got {type(model).__name__} in {str(folder)!r}, whose blocks "
            "differ or choose among experts; name a model without"
        )
    shared = bool(text.tie_word_embeddings)
    [matrix], vector = matrices, _count(blocks[0], matrices=False)
    ends = text.vocab_size * sizes.hidden_size * (1 if shared else 2)
    num_heads = int(text.num_attention_heads)
    head_size = int(getattr(text, "head_dim", None) or sizes.hidden_size // num_heads)
    return ModelShape(
        name=folder.resolve().name,
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        inner_size=int(getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * sizes.hidden_size),
        num_heads=num_heads,
        num_key_heads=sizes.key_value_size // head_size,
        head_size=head_size,
        vocab_size=int(text.vocab_size),
        context_tokens=context_of(config),
        block_matrix_parameters=matrix,
        block_vector_parameters=vector,
        other_parameters=sum(p.numel() for p in model.parameters()) - sizes.num_layers * (matrix + vector) - ends,
        shares_embedding=shared,
    )


def _count(module: nn.Module, *, matrices: bool) -> int:
    return sum(p.numel() for p in module.parameters() if (p.dim() > 1) is matrices)
