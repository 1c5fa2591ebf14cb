"""Gates: the soft switches that read the last prompt token and decide how much of an edit is applied."""

from collections.abc import Callable
from functools import partial

from grun.config import Config, GateConfig, LinearGateConfig, Mlp3GateConfig, Mlp5GateConfig, NoGateConfig
from grun.gates.base import AbstractGate
from grun.gates.batched import BatchedGates
from grun.gates.linear import LinearGate
from grun.gates.mlp import MlpGate
from grun.gates.none import NoGate
from grun.gates.threshold import apply_threshold

__all__ = ["GATES", "AbstractGate", "BatchedGates", "LinearGate", "MlpGate", "NoGate", "apply_threshold", "build_gate"]

GATES: dict[type[Config], Callable[[int], AbstractGate]] = {
    LinearGateConfig: LinearGate,
    Mlp3GateConfig: partial(MlpGate, widths=(256, 64)),
    Mlp5GateConfig: partial(MlpGate, widths=(1024, 512, 256, 64)),
    NoGateConfig: NoGate,
}
"""What builds a gate of each kind, from the hidden size."""


def build_gate(config: GateConfig, hidden_size: int) -> AbstractGate:
    """Build an untrained gate for hidden states of width `hidden_size`, drawn from torch's global generator."""
    return GATES[type(config)](hidden_size)
