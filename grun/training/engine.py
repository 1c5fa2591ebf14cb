"""Engine: what a worker needs around the frozen model. Torch keeps the base whole; DeepSpeed (in `pipelines`) shards it.

What is large and frozen belongs to the engine; what is small and learns (adapter, optimizer, schedule, clipping) is
plain replicated torch and the same under every engine. So an engine only has to run backward through its base and
to sum a few kilobytes over the workers.
"""

from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from grun.lm import FrozenLM, Pass

__all__ = ["Engine", "TorchEngine"]


@runtime_checkable
class Engine(Protocol):
    """The frozen model of one worker, and its link to the others."""

    base: Pass
    """Runs the base, full or cached."""

    @property
    def lm(self) -> FrozenLM:
        """The base, or its upper part."""
        ...

    @property
    def rank(self) -> int:
        """Index of this worker."""
        ...

    @property
    def world_size(self) -> int:
        """Number of workers."""
        ...

    def cut_at(self, layer: int) -> None:
        """Prepare for an adapter that starts at a block: with a prefix cache, only what lies above it is run from now on."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a scalar loss on the adapter."""
        ...

    def sum_(self, values: Tensor) -> None:
        """Sum a tensor over all workers, in place."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, in order of rank, on every worker."""
        ...


class TorchEngine:
    """The base replicated on every worker (ZeRO stage 0), or one process alone."""

    def __init__(self, base: Pass) -> None:
        self.base = self._loaded = base
        self._distributed = dist.is_available() and dist.is_initialized()

    @property
    def lm(self) -> FrozenLM:
        """The base, or its upper part."""
        return self.base.lm

    @property
    def rank(self) -> int:
        """Index of this worker."""
        return dist.get_rank() if self._distributed else 0

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return dist.get_world_size() if self._distributed else 1

    def cut_at(self, layer: int) -> None:
        """As :meth:`Engine.cut_at`."""
        self.base = self._loaded.cut_at(layer)

    def backward(self, loss: Tensor) -> None:
        """Plain autograd."""
        torch.autograd.backward(loss)

    def sum_(self, values: Tensor) -> None:
        """One all-reduce."""
        if self._distributed:
            dist.all_reduce(values)

    def gather(self, value: Any) -> list[Any]:
        """One all-gather of small Python values."""
        if not self._distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
