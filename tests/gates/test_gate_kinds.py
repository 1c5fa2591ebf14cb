import pytest
import torch
from torch import nn

from grun.config import LinearGateConfig, Mlp3GateConfig, Mlp5GateConfig, NoGateConfig
from grun.gates import LinearGate, MlpGate, apply_threshold, build_gate


def test_linear_gate_of_the_reference_example() -> None:
    gate = LinearGate(3)
    gate.load_state_dict({"linear.weight": torch.tensor([[0.1, -0.2, 0.3]]), "linear.bias": torch.tensor([0.05])})
    logit = gate.logits(torch.tensor([1.0, 2.0, 3.0]))
    assert logit.shape == ()
    assert logit.sigmoid().item() == pytest.approx(0.6570104627, abs=1e-7)


def test_mlp_gate_by_hand() -> None:
    gate = MlpGate(2, (2, 1))
    gate.load_state_dict(
        {
            "layers.0.weight": torch.tensor([[1.0, 0.0], [0.0, -1.0]]),
            "layers.0.bias": torch.tensor([0.0, 1.0]),
            "layers.2.weight": torch.tensor([[2.0, 3.0]]),
            "layers.2.bias": torch.tensor([-1.0]),
            "layers.4.weight": torch.tensor([[-5.0]]),
            "layers.4.bias": torch.tensor([0.5]),
        }
    )
    # h = (1, 2): relu(1, -1) = (1, 0); relu(2 - 1) = 1; -5 + 0.5.  h = (-1, 2): relu(-1, -1) = 0; relu(-1) = 0; 0.5
    assert gate.logits(torch.tensor([[1.0, 2.0], [-1.0, 2.0]])).tolist() == [-4.5, 0.5]


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(LinearGateConfig(), 4_097), (Mlp3GateConfig(), 1_065_345), (Mlp5GateConfig(), 4_867_969), (NoGateConfig(), 0)],
)
def test_parameter_counts_of_the_paper(config: LinearGateConfig, parameters: int) -> None:
    with torch.device("meta"):
        gate = build_gate(config, 4096)
    assert sum(parameter.numel() for parameter in gate.parameters()) == parameters


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, 1.0])
def test_without_a_gate_the_value_is_1_at_every_threshold(threshold: float | None) -> None:
    logits = build_gate(NoGateConfig(), 4).logits(torch.tensor([[torch.nan, -1e30, 0.0, 1.0]]))
    assert apply_threshold(logits.sigmoid(), threshold).tolist() == [1.0]


def test_mlp_layers_alternate_linear_and_relu() -> None:
    layers = MlpGate(8, (4, 2)).layers
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert set(LinearGate(8).state_dict()) == {"linear.weight", "linear.bias"}
