"""Hand-worked values of every term."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import tensor

from grun.config import GradDiffConfig, IdkConfig, NpoConfig, RetainCeConfig, RetainHiddenConfig, RetainKlConfig, RmuConfig
from grun.objectives import AnswerTokens, ObjectiveInputs, Totals
from grun.objectives.gate_bce import gate_bce
from grun.objectives.grad_diff import grad_diff
from grun.objectives.idk import idk
from grun.objectives.npo import npo
from grun.objectives.retain_ce import retain_ce
from grun.objectives.retain_hidden import retain_hidden
from grun.objectives.retain_kl import retain_kl
from grun.objectives.rmu import direction, rmu

Golden = Callable[..., ObjectiveInputs]


def test_cross_entropies(golden: Golden) -> None:
    inputs = golden()
    assert inputs.forget.nll.tolist() == pytest.approx([0.3407529539, 0.6265233750, 1.6672241647], rel=1e-6)
    assert inputs.forget.sequence_nll().tolist() == pytest.approx([2.6345004937], rel=1e-6)
    assert inputs.forget.sequence_nll_ref().tolist() == pytest.approx([1.8280897152], rel=1e-6)
    assert math.exp(-inputs.forget_nll().item()) == pytest.approx(0.4155439761, rel=1e-6)


def test_gd_is_minus_and_idk_and_ce_are_plus_the_mean_cross_entropy(golden: Golden) -> None:
    inputs = golden()
    assert grad_diff(inputs, GradDiffConfig()).item() == pytest.approx(-0.8781668312, rel=1e-6)
    assert idk(inputs, IdkConfig()).item() == pytest.approx(0.8781668312, rel=1e-6)
    assert retain_ce(inputs, RetainCeConfig()).item() == pytest.approx(0.8781668312, rel=1e-6)


def test_cross_entropies_are_means_over_tokens_not_over_sequences() -> None:
    nll = tensor([3.0, 1, 1, 1])
    tokens = AnswerTokens(nll, tensor([0, 1, 1, 1]), 2)
    inputs = ObjectiveInputs(tokens, tokens, torch.zeros(2, 1), torch.zeros(2, 1), Totals(2, 4, 2, 4))
    assert retain_ce(inputs, RetainCeConfig()).item() == 1.5
    assert grad_diff(inputs, GradDiffConfig()).item() == -1.5


def test_npo(golden: Golden) -> None:
    assert npo(golden(), NpoConfig(beta=0.1)).item() == pytest.approx(13.0727858881, rel=1e-6)


def test_npo_is_a_mean_over_sequences_of_their_summed_tokens(golden: Golden) -> None:
    ratios = [0.3407529539 - 0.7436683806, (0.6265233750 + 1.6672241647) - (0.3407529539 + 0.7436683806)]
    expected = sum(20 * math.log1p(math.exp(-0.1 * ratio)) for ratio in ratios) / 2
    assert npo(golden(row=(0, 1, 1)), NpoConfig(beta=0.1)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("beta", [0.1, 2.5])
def test_npo_at_the_reference(golden: Golden, beta: float) -> None:
    inputs = golden(nll_ref=golden().forget.nll)
    assert npo(inputs, NpoConfig(beta=beta)).item() == pytest.approx(2 / beta * math.log(2), rel=1e-6)


def test_retain_kl_per_token_and_mean(golden: Golden) -> None:
    per_token = [0.1217176869, 0.0932601506, 0.2240449660]
    whole = golden()
    for index, expected in enumerate(per_token):
        one = slice(index, index + 1)
        assert whole.retain.logits is not None
        assert whole.retain.logits_ref is not None
        tokens = AnswerTokens(
            whole.retain.nll[one],
            whole.retain.row[one],
            1,
            logits=whole.retain.logits[one],
            logits_ref=whole.retain.logits_ref[one],
        )
        inputs = ObjectiveInputs(tokens, tokens, torch.zeros(1, 1), torch.zeros(1, 1), Totals(1, 1, 1, 1))
        assert retain_kl(inputs, RetainKlConfig()).item() == pytest.approx(expected, rel=1e-5)
    assert retain_kl(whole, RetainKlConfig()).item() == pytest.approx(0.1463409345, rel=1e-6)


def test_retain_kl_of_equal_models_is_zero(golden: Golden) -> None:
    logits = golden().retain.logits
    assert logits is not None
    assert retain_kl(golden(logits_ref=logits + 3), RetainKlConfig()).item() == pytest.approx(0, abs=1e-6)


def test_gate_bce(golden: Golden) -> None:
    assert gate_bce(golden()).item() == pytest.approx(0.2540847836, rel=1e-6)


def test_gate_bce_is_one_plain_mean_over_rows_and_blocks(golden: Golden) -> None:
    forget, retain = golden().forget, golden(row=(0, 0, 1)).retain
    inputs = ObjectiveInputs(forget, retain, tensor([[2.0, 0]]), tensor([[0.0, 0], [-2, 0]]), Totals(1, 3, 2, 3))
    assert gate_bce(inputs).item() == pytest.approx((2 * math.log1p(math.exp(-2)) + 4 * math.log(2)) / 6, rel=1e-6)


def test_gate_bce_of_a_gate_that_is_wrong_beyond_sigmoid_precision_still_learns(golden: Golden) -> None:
    forget, retain = torch.full((1, 1), -200.0, requires_grad=True), torch.full((1, 1), 200.0, requires_grad=True)
    inputs = ObjectiveInputs(golden().forget, golden().retain, forget, retain, Totals(1, 3, 1, 3))
    loss = gate_bce(inputs)
    gradients = torch.autograd.grad(loss, (forget, retain))
    assert loss.item() == 200
    assert [gradient.item() for gradient in gradients] == [-0.5, 0.5]


def test_rmu_is_a_mean_over_tokens_and_features(golden: Golden) -> None:
    u = direction(3, 2)
    offset = tensor([[1.0, 0], [0, 2], [0, 0]])
    inputs = golden(hidden=5 * u + offset)
    assert rmu(inputs, RmuConfig(coefficient=5, seed=3)).item() == pytest.approx((1 + 4) / 6, rel=1e-5)


def test_rmu_direction_is_drawn_from_the_unit_cube_and_has_length_one() -> None:
    u = direction(7, 64)
    assert u.norm().item() == pytest.approx(1, rel=1e-6)
    assert (u >= 0).all()
    assert torch.equal(u, direction(7, 64))
    assert not torch.equal(u, direction(8, 64))
    state = torch.get_rng_state()
    direction(7, 64)
    assert torch.equal(state, torch.get_rng_state())


def test_retain_hidden_is_a_mean_over_tokens_and_features(golden: Golden) -> None:
    inputs = golden(hidden=tensor([[1.0, 0], [0, 2], [3, 3]]), hidden_ref=tensor([[0.0, 0], [0, 0], [3, 3]]))
    assert retain_hidden(inputs, RetainHiddenConfig()).item() == pytest.approx(5 / 6)
