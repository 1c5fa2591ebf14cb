"""LoRA: a low-rank difference learns beside every linear map but the head.

    W' = W + (alpha / r) B A          A: r x in, B: out x r, B = 0 at first

Source: Hu et al. 2021, arXiv:2106.09685, by the `peft` package; for unlearning at 8B it was published with rank 4, alpha 32,
dropout 0.05 and learning rate 1e-4 (arXiv:2502.17823). While B is 0, A has no gradient.
"""

from dataclasses import dataclass

import torch

from grun.compared.base import ChangedBase, copied
from grun.lm import FrozenLM
from grun.lm.blocks import block_list

__all__ = ["LoraSettings", "lora"]


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the difference."""

    rank: int = 4
    """Rank r."""
    alpha: int = 32
    """The difference is scaled by alpha / r."""
    dropout: float = 0.05
    """Share of A's inputs that is dropped in training."""


def lora(lm: FrozenLM, settings: LoraSettings | None = None, *, seed: int) -> ChangedBase:
    """Return a base with untrained LoRA in it, which computes what the given one does; A is drawn by the seed."""
    # optional at run time: nothing but this comparison needs it
    from peft import LoraConfig, inject_adapter_in_model

    shape = settings or LoraSettings()
    copy, model = copied(lm)
    config = LoraConfig(
        r=shape.rank, lora_alpha=shape.alpha, lora_dropout=shape.dropout, target_modules="all-linear", bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    model.eval()
    assert list(block_list(model)) == list(copy.blocks), "LoRA goes into blocks and must not replace them"
    idle = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad and ".lora_A." in name)
    return ChangedBase(copy, lm, idle)
