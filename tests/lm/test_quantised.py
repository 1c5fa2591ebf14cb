"""torchao's integers, number by number: they are whole, within their bits, and no further from the weight than half a step."""

import pytest
import torch
from torch import Tensor, nn

from grun.lm.quantised import int4_group, quantise_int4, quantise_int8


def layer(outputs: int, width: int) -> nn.Linear:
    """Rows of very different size, as in real weights: one scale for all of them would drown the small ones."""
    linear = nn.Linear(width, outputs).requires_grad_(False)
    linear.weight.mul_(torch.logspace(-3, 1, outputs)[:, None])
    return linear


def integers(linear: nn.Linear) -> Tensor:
    weight = linear.weight
    assert hasattr(weight, "qdata")
    assert isinstance(weight.qdata, Tensor)
    return weight.qdata


def test_int8_is_off_by_at_most_half_a_step_of_each_row() -> None:
    linear = layer(24, 70)
    before, x = linear.weight.clone(), torch.randn(5, 70)
    quantise_int8(linear)
    assert integers(linear).dtype == torch.int8
    step = before.abs().amax(1, keepdim=True) / 127.5
    assert ((linear.weight.dequantize() - before).abs() <= 0.502 * step).all()
    # the step is no finer than eight bits make it
    whole = (linear.weight.dequantize() / step).round()
    assert (whole * step - linear.weight.dequantize()).abs().max() < 1e-4 * step.max()
    torch.testing.assert_close(linear(x), nn.functional.linear(x, linear.weight.dequantize(), linear.bias))


@pytest.mark.parametrize(("width", "group"), [(64, 32), (62, 31), (341, 31), (48, 24), (34, 17), (37, 37), (8, 8)])
def test_int4_is_off_by_at_most_half_a_step_of_each_group(width: int, group: int) -> None:
    assert int4_group(width) == group
    linear = layer(24, width)
    before, x = linear.weight.clone(), torch.randn(5, width)
    quantise_int4(linear)
    codes = integers(linear)
    assert codes.min() == -8
    assert codes.max() == 7
    groups = (before - linear.weight.dequantize()).view(24, -1, group)
    step = before.view(24, -1, group).abs().amax(-1, keepdim=True) / 7.5
    # the largest magnitude is half a step outside when it is positive: there are eight steps down and seven up
    assert (groups.abs() <= 0.502 * step).all()
    assert codes.view(24, -1, group).unique().numel() <= 16
    torch.testing.assert_close(linear(x), nn.functional.linear(x, linear.weight.dequantize(), linear.bias))


def test_gradients_pass_to_the_hidden_states_and_not_to_the_weight() -> None:
    for quantise in (quantise_int8, quantise_int4):
        linear = layer(8, 64)
        quantise(linear)
        x = torch.randn(3, 64, requires_grad=True)
        linear(x).sum().backward()
        torch.testing.assert_close(x.grad, linear.weight.dequantize().sum(0).expand(3, 64))
        assert linear.weight.grad is None
