"""ILU's regulariser against its definition: the gradient with respect to a dummy w, squared."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from grun.objectives import AnswerTokens, EnvironmentGradient, ObjectiveInputs
from grun.objectives.invariance import invariance, of_logits, of_parameters

Golden = Callable[..., ObjectiveInputs]

LABELS = torch.tensor([4, 0, 2, 2, 1])


def tokens_of(logits: Tensor, labels: Tensor = LABELS) -> AnswerTokens:
    nll = F.cross_entropy(logits, labels, reduction="none")
    return AnswerTokens(nll, torch.zeros(len(labels), dtype=torch.long), 1, logits=logits)


def with_environments(inputs: ObjectiveInputs, *shares: Tensor) -> ObjectiveInputs:
    """As one worker alone sees them."""
    return replace(inputs, environments=tuple(EnvironmentGradient(share, share.detach()) for share in shares))


def test_golden_value_of_the_scalar_on_the_logits(golden: Golden) -> None:
    share = of_logits(golden().retain, 3)
    assert share.item() == pytest.approx(-0.2680613296, rel=1e-6)
    assert invariance(with_environments(golden(), share)).item() == pytest.approx(0.0718568764, rel=1e-6)


@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_the_closed_form_is_the_derivative_by_a_dummy_scalar_and_has_its_gradient(golden: Golden, scale: float) -> None:
    logits = (scale * torch.randn(5, 6)).requires_grad_()
    w = torch.ones((), requires_grad=True)
    [derivative] = torch.autograd.grad(F.cross_entropy(w * logits, LABELS), w, create_graph=True)
    share = of_logits(tokens_of(logits), 5)
    torch.testing.assert_close(share[0], derivative)
    [expected] = torch.autograd.grad(derivative.square(), logits)
    [found] = torch.autograd.grad(invariance(with_environments(golden(), share)), logits)
    torch.testing.assert_close(found, expected)


def test_the_parameter_reading_by_hand(golden: Golden) -> None:
    # l = (3 a^2 + a b) / 2 with one element each; a third parameter takes no part
    a, b, idle = (tensor([value], requires_grad=True) for value in (2.0, -4.0, 7.0))
    tokens = AnswerTokens(torch.cat([3 * a * a, a * b]), torch.tensor([0, 0]), 1)
    share = of_parameters(tokens, 2, [a, b, idle])
    assert share.tolist() == [2 * (12 - 4) / 2, -4 * 2 / 2, 0]
    penalty = invariance(with_environments(golden(), share))
    assert penalty.item() == 8**2 + 4**2
    gradients = torch.autograd.grad(penalty, (a, b))
    assert [gradient.item() for gradient in gradients] == [2 * (8 * 10 + 4 * 2), 2 * (8 * 1 - 4 * 1)]


def test_the_parameter_reading_is_the_derivative_by_a_dummy_w_of_each_element(golden: Golden) -> None:
    theta, features = torch.randn(3, 6, requires_grad=True), torch.randn(5, 3)
    w = torch.ones(3, 6, requires_grad=True)

    def loss(weights: Tensor) -> Tensor:
        return F.cross_entropy((features @ weights).tanh(), LABELS)

    [derivative] = torch.autograd.grad(loss(w * theta), w, create_graph=True)
    share = of_parameters(tokens_of((features @ theta).tanh()), 5, [theta])
    torch.testing.assert_close(share, derivative.flatten())
    [expected] = torch.autograd.grad(derivative.square().sum(), theta)
    [found] = torch.autograd.grad(invariance(with_environments(golden(), share)), theta)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cut", range(6))
@pytest.mark.parametrize("reading", ["logits", "parameters"])
def test_shares_of_two_workers_add_up_to_the_square_of_the_whole(golden: Golden, reading: str, cut: int) -> None:
    theta, features = torch.randn(3, 6, requires_grad=True), torch.randn(5, 3)

    def share(rows: slice) -> Tensor:
        tokens = tokens_of((features[rows] @ theta).tanh(), LABELS[rows])
        return of_logits(tokens, 5) if reading == "logits" else of_parameters(tokens, 5, [theta])

    whole, parts = share(slice(0, 5)), [share(slice(0, cut)), share(slice(cut, 5))]
    alone = invariance(with_environments(golden(), whole))
    total = (parts[0] + parts[1]).detach()
    two = [invariance(replace(golden(), environments=(EnvironmentGradient(part, total),))) for part in parts]
    torch.testing.assert_close(two[0] + two[1], alone)
    (first,), (second,), (expected,) = (torch.autograd.grad(value, theta, retain_graph=True) for value in (*two, alone))
    torch.testing.assert_close(first + second, expected)


def test_environments_are_squared_before_they_are_summed(golden: Golden) -> None:
    assert invariance(with_environments(golden(), tensor([3.0]), tensor([-3.0]))).item() == 18
