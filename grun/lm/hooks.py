"""Forward hooks that always come off again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["edit_outputs", "narrow_input"]


@contextmanager
def edit_outputs(edits: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace the hidden states (B, T, D) that modules return, within the context only.

    Accepts modules that return the tensor or a tuple that starts with it, as decoder blocks do.
    """

    def hook_for(edit: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(output[0]), *output[1:])
            return edit(output)

        return hook

    handles = [module.register_forward_hook(hook_for(edit)) for module, edit in edits.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def narrow_input(module: nn.Module, predicts: Tensor) -> Iterator[None]:
    """Let a language-model head see only the positions (B, T) that predict an answer token.

    The head's output becomes (N, V) instead of (B, T, V): the vocabulary is where most of the memory would go. What
    models do after the head (soft-capping, scaling) acts on each element and is not disturbed.
    """

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][predicts], *args[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
