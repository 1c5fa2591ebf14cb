"""The adapter's optimizer: AdamW on a few kilobytes, the same on every worker.

Each worker computes its share of the global gradient (its sums over the global counts); one flat all-reduce adds
the shares and the loss terms up. From there on all workers do the same arithmetic on the same numbers.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from grun.config import TrainConfig
from grun.errors import TrainingError
from grun.training.engine import Engine
from grun.training.schedules import learning_rate_scale

__all__ = ["AdapterOptimizer", "Trainable"]


class Trainable(Protocol):
    """What learns: an adapter, or a base that is compared with one."""

    @property
    def idle_at_start(self) -> frozenset[str]:
        """Parameters that rightly have no gradient in the first step."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The parameters that learn."""
        ...

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """The same for an optimizer, by whether they are decayed."""
        ...


class AdapterOptimizer:
    """Gradient summation, clipping, AdamW and the learning-rate schedule."""

    def __init__(self, adapter: Trainable, config: TrainConfig, *, total_steps: int) -> None:
        self.adapter = adapter
        self.config = config
        self.total_steps = total_steps
        self.named = dict(adapter.named_parameters())
        self.adamw = torch.optim.AdamW(adapter.parameter_groups(config.weight_decay), lr=config.learning_rate)

    def step(self, engine: Engine, step: int, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Apply the gradients that are on the adapter and return the global loss terms (and `train/...` numbers).

        Args:
            step: optimizer step, counted from 0.
            terms: this worker's share of each named term.

        Raises:
            TrainingError: a term, a gradient or the norm of all is not finite; after the first step, a tensor has no gradient.
        """
        # a worker's share may be empty; whether a tensor learns at all is decided on the sum
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.named.values()]
        flat = torch.cat(
            [*(grad.reshape(-1) for grad in grads), *(value.detach().float().reshape(1) for value in terms.values())]
        )
        engine.sum_(flat)
        sizes = [grad.numel() for grad in grads]
        *parts, sums = flat.split([*sizes, len(terms)])
        values = dict(zip(terms, sums.tolist(), strict=True))
        self._check(step, values, flat, dict(zip(self.named, parts, strict=True)))
        for parameter, part in zip(self.named.values(), parts, strict=True):
            parameter.grad = part.view_as(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.config.grad_clip)
        if not bool(torch.isfinite(norm)):  # of finite gradients: clipping would make nothing of them, and that without a word
            raise TrainingError(
                f"gradients must not explode, got a norm beyond what a float holds in step {step + 1}; nothing was applied. "
                "Lower `train.learning_rate` or the weight of the forget term"
            )
        scale = learning_rate_scale(step, total_steps=self.total_steps, warmup_steps=self.config.warmup_steps)
        for group in self.adamw.param_groups:
            group["lr"] = self.config.learning_rate * scale
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return {**values, "train/grad_norm": norm.item(), "train/learning_rate": self.config.learning_rate * scale}

    def _check(self, step: int, values: Mapping[str, float], flat: Tensor, grads: Mapping[str, Tensor]) -> None:
        if not bool(torch.isfinite(flat).all()):
            bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
            where = (
                f"terms {bad}" if bad else f"gradients of {[n for n, g in grads.items() if not bool(torch.isfinite(g).all())]}"
            )
            raise TrainingError(
                f"loss and gradients must stay finite, got non-finite {where} in step {step + 1}; nothing was applied. "
                "Lower `train.learning_rate` or the weight of the forget term"
            )
        if step == 0:
            idle = [n for n, grad in grads.items() if n not in self.adapter.idle_at_start and not bool(grad.any())]
            if idle:
                raise TrainingError(
                    f"every trainable tensor must receive a gradient in the first step, got none for {idle}; "
                    "check that no loss reads before the last intervened layer and that no term's weight is 0"
                )

    def state(self) -> dict[str, Tensor]:
        """Moments by parameter name."""
        moments: dict[str, Tensor] = {}
        for name, parameter in self.named.items():
            for key, value in self.adamw.state.get(parameter, {}).items():
                moments[f"{key}/{name}"] = value.detach().clone().contiguous()
        return moments

    def load_state(self, moments: Mapping[str, Tensor]) -> None:
        """Restore moments saved by :meth:`state`."""
        for name, parameter in self.named.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.adamw.state[parameter] = {key: moments[f"{key}/{name}"].clone() for key in keys if f"{key}/{name}" in moments}
