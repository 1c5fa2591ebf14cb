"""Stacks for tests: members on a base of four blocks, and gates whose logits are what a test says."""

from collections.abc import Sequence

import torch
from torch import Tensor

from grun.config import AdapterConfig, CompositionConfig, GateConfig, LinearGateConfig, SumConfig
from grun.gates import LinearGate
from grun.interventions import Adapter, AdapterStack, StackMember, build_adapter

HIDDEN_SIZE = 16


def build(
    seed: int, *, gate: GateConfig | None = None, layers: tuple[int, ...] = (0, 2), rank: int = 3, hidden_size: int = HIDDEN_SIZE
) -> Adapter:
    """An untrained adapter."""
    config = AdapterConfig(layers=layers, rank=rank, gate=gate or LinearGateConfig())
    return build_adapter(config, hidden_size=hidden_size, num_layers=4, seed=seed)


def reading(adapter: Adapter, coordinate: int) -> Adapter:
    """Let each gate's logit be a coordinate of h."""
    weight = torch.eye(adapter.hidden_size)[coordinate : coordinate + 1]
    for _layer, gated in adapter:
        assert isinstance(gated.gate, LinearGate)
        gated.gate.load_state_dict({"linear.weight": weight, "linear.bias": torch.zeros(1)})
    return adapter


def stack_of(
    adapters: Sequence[Adapter],
    thresholds: Sequence[float | None] | float | None = 0.5,
    composition: CompositionConfig | None = None,
) -> AdapterStack:
    """Members r0, r1, ... with thresholds of their own or one for all."""
    own = [thresholds] * len(adapters) if thresholds is None or isinstance(thresholds, float) else thresholds
    members = [StackMember(f"r{index}", adapter, own[index]) for index, adapter in enumerate(adapters)]
    return AdapterStack(members, composition or SumConfig())


def rows(count: int, seed: int = 0, hidden_size: int = HIDDEN_SIZE) -> Tensor:
    """(count, D) hidden states."""
    return torch.randn(count, hidden_size, generator=torch.Generator().manual_seed(seed))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype are equal to the last bit, signs of zeros included."""
    bits = torch.int32 if one.dtype == torch.float32 else torch.int16
    return one.dtype == other.dtype and torch.equal(one.view(bits), other.view(bits))
