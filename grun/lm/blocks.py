"""Decoder blocks: find them, and leave the lower ones out.

Blocks up to a cut are replaced by placeholders that pass their input on. So indices, masks, rotary positions and
everything else of the model's own forward stay as Hugging Face wrote them, and an adapter's edits find the block at the
cut where they expect it: what it would have put out is supplied from a prefix cache by a hook.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

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


def upper_class(whole: type[PreTrainedModel], config: Any, cut: int) -> type[PreTrainedModel]:
    """Return the class of a model that never has blocks 0..cut, nor the embedding where the head does not share it.

    Its `from_pretrained` reads only the weights that it has, under ZeRO-3 into shards as ever. The others are not even
    allocated: on a base that fills several workers, there would be no room for them.
    """
    with torch.device("meta"), no_init_weights():
        order, skeleton = _built_in_order(lambda: whole(copy.deepcopy(config)))
    shares_embedding = bool(config.get_text_config().tie_word_embeddings)
    lower = list(block_list(skeleton)[: cut + 1])
    embedding = skeleton.get_input_embeddings()
    left_out = {id(module) for module in (*lower, *([] if shares_embedding else [embedding]))}
    numbers = {kind: {n for n, module in enumerate(built) if id(module) in left_out} for kind, built in order.items()}

    def init(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:
        # what is left out cannot be initialised, and the rest is read from files
        with no_init_weights(), _leaving_out({kind: few for kind, few in numbers.items() if few}):
            cast(Any, whole).__init__(self, config, *args, **kwargs)
        blocks = block_list(self)
        for index in range(cut + 1):
            blocks[index] = Skipped()
        if not shares_embedding:
            self.set_input_embeddings(nn.Identity())

    # transformers goes by the name of the class in places, for instance to find its loss
    return cast(type[PreTrainedModel], type(whole.__name__, (whole,), {"__init__": init, "__module__": whole.__module__}))


def _built_in_order(build: Callable[[], PreTrainedModel]) -> tuple[dict[type[nn.Module], list[nn.Module]], PreTrainedModel]:
    """Build a model and return its modules by class, in the order in which they were built; building it again keeps that order."""
    built: list[nn.Module] = []
    init = nn.Module.__init__

    def recorded(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        built.append(self)
        init(self, *args, **kwargs)

    with mock.patch.object(nn.Module, "__init__", recorded):
        model = build()
    order: dict[type[nn.Module], list[nn.Module]] = {}
    for module in built:
        order.setdefault(type(module), []).append(module)
    return order, model


@contextmanager
def _leaving_out(numbers: Mapping[type[nn.Module], set[int]]) -> Iterator[None]:
    """While a model is built, let the n-th modules of some classes come into being with nothing in them."""
    counts: Counter[type[nn.Module]] = Counter()

    def counted(kind: type[nn.Module], init: Callable[..., None]) -> Callable[..., None]:
        def build(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            number = counts[kind]
            counts[kind] += type(self) is kind
            if type(self) is kind and number in numbers[kind]:
                nn.Module.__init__(self)
            else:
                init(self, *args, **kwargs)

        return build

    with ExitStack() as stack:
        for kind in numbers:
            stack.enter_context(mock.patch.object(kind, "__init__", counted(kind, kind.__init__)))
        yield
