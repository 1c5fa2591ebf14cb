"""Decoder blocks: find them, and leave the lower ones out.

Blocks up to a cut are replaced by placeholders that pass their input on. So indices, masks, rotary positions and
everything else of the model's own forward stay as Hugging Face wrote them, and an adapter's edits find the block at the
cut where they expect it: what it would have put out is supplied from a prefix cache by a hook.
"""

import copy
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from grun.errors import ModelError

__all__ = ["Skipped", "block_list", "upper_class", "upper_view"]


class Skipped(nn.Module):
    """Stands where a decoder block was, and returns the hidden states that it is given."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """Pass the hidden states (B, T, D) on."""
        return hidden_states


def block_list(model: PreTrainedModel) -> nn.ModuleList:
    """Find the decoder blocks: the one list of as many modules as the configuration has layers.

    Raises:
        ModelError: there is no such list, or more than one.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == num_layers]
    outermost = [module for module in lists if not any(module is not other and module in set(other.modules()) for other in lists)]
    if len(outermost) != 1:
        raise ModelError(
            f"a base model must have one list of decoder blocks, got {len(outermost)} candidates in {type(model).__name__}; "
            "only decoder-only models are supported"
        )
    return outermost[0]


def upper_view(model: PreTrainedModel, cut: int) -> PreTrainedModel:
    """Return a model in which blocks 0..cut are skipped; it shares every other module with the given one, which stays whole."""
    blocks = block_list(model)
    upper = nn.ModuleList([Skipped() if index <= cut else block for index, block in enumerate(blocks)])
    return cast(PreTrainedModel, _replaced(model, blocks, upper))


def _replaced(module: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """A copy of a module with one module below it replaced; what does not lie on the way to it is shared."""
    if module is old:
        return new
    clone = copy.copy(module)
    children = {
        name: _replaced(child, old, new) if child is not None and old in set(child.modules()) else child
        for name, child in module._modules.items()
    }
    object.__setattr__(clone, "_modules", children)
    return clone


def upper_class(whole: type[PreTrainedModel], cut: int) -> type[PreTrainedModel]:
    """Return the class of a model that never has blocks 0..cut, nor the embedding where the head does not share it.

    Its `from_pretrained` reads only the weights that it has, under ZeRO-3 into shards as ever.
    """

    def init(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:
        cast(Any, whole).__init__(self, config, *args, **kwargs)
        blocks = block_list(self)
        for index in range(cut + 1):
            blocks[index] = Skipped()
        if not config.get_text_config().tie_word_embeddings:
            self.set_input_embeddings(nn.Identity())

    # transformers goes by the name of the class in places, for instance to find its loss
    return cast(type[PreTrainedModel], type(whole.__name__, (whole,), {"__init__": init, "__module__": whole.__module__}))
