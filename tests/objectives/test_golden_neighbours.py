"""Hand-worked values of the terms that come from neighbouring work, and what sets each apart (method.md, 6.6 and 6.7)."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from grun.config import (
    CeuConfig,
    DpoConfig,
    NegativeConfig,
    NpoConfig,
    SatImpConfig,
    SimNpoConfig,
    TnpoConfig,
    UndialConfig,
    WgaConfig,
    WtnpoConfig,
)
from grun.objectives import AnswerTokens, ObjectiveInputs, Totals
from grun.objectives.ceu import ceu
from grun.objectives.dpo import dpo
from grun.objectives.negative import negative
from grun.objectives.npo import npo
from grun.objectives.satimp import satimp
from grun.objectives.simnpo import simnpo
from grun.objectives.tnpo import tnpo, wtnpo
from grun.objectives.undial import undial
from grun.objectives.wga import wga

Golden = Callable[..., ObjectiveInputs]


def of_nll(*nll: float, nll_ref: tuple[float, ...] | None = None) -> tuple[ObjectiveInputs, Tensor]:
    """Inputs of one sequence with given cross-entropies, and these as a leaf."""
    leaf = tensor(nll, requires_grad=True)
    reference = None if nll_ref is None else tensor(nll_ref)
    tokens = AnswerTokens(leaf, torch.zeros(len(nll), dtype=torch.long), 1, nll_ref=reference)
    gates = torch.zeros(1, 1)
    return ObjectiveInputs(tokens, tokens, gates, gates, Totals(1, len(nll), 1, len(nll))), leaf


@pytest.mark.parametrize(("beta", "gamma", "value"), [(2.5, 0, 0.0844331301), (4.5, 0.5, 0.0744514671)])
def test_simnpo(golden: Golden, beta: float, gamma: float, value: float) -> None:
    assert simnpo(golden(), SimNpoConfig(beta=beta, gamma=gamma)).item() == pytest.approx(value, rel=1e-5)


def test_simnpo_is_a_mean_over_sequences_of_their_mean_tokens(golden: Golden) -> None:
    means = [0.3407529539, (0.6265233750 + 1.6672241647) / 2]
    expected = sum(2 / 2.5 * math.log1p(math.exp(-2.5 * mean)) for mean in means) / 2
    assert simnpo(golden(row=(0, 1, 1)), SimNpoConfig()).item() == pytest.approx(expected, rel=1e-6)


def preferring(inputs: ObjectiveInputs, nll: Tensor, nll_ref: Tensor) -> ObjectiveInputs:
    """With one preferred answer, of two tokens."""
    return replace(inputs, preferred=AnswerTokens(nll, torch.tensor([0, 0]), 1, nll_ref=nll_ref))


def test_dpo(golden: Golden) -> None:
    inputs = preferring(golden(), tensor([1.5, 2.5]), tensor([1.0, 5.0]))
    assert dpo(inputs, DpoConfig(beta=0.1)).item() == pytest.approx(11.2527885911, rel=1e-6)


def test_dpo_whose_preferred_answer_has_not_moved_is_npo(golden: Golden) -> None:
    inputs = preferring(golden(), tensor([1.5, 2.5]), tensor([1.5, 2.5]))
    assert dpo(inputs, DpoConfig(beta=0.1)).item() == pytest.approx(npo(inputs, NpoConfig(beta=0.1)).item(), rel=1e-6)


def test_dpo_makes_the_preferred_answer_likelier_and_the_other_less_so(golden: Golden) -> None:
    nll, preferred = golden().forget.nll.clone().requires_grad_(), tensor([1.5, 2.5], requires_grad=True)
    inputs = preferring(golden(nll=nll), preferred, tensor([1.0, 5.0]))
    away, towards = torch.autograd.grad(dpo(inputs, DpoConfig()), (nll, preferred))
    assert (away < 0).all()
    assert torch.allclose(towards, -away[0])


def test_negative_is_the_mean_cross_entropy(golden: Golden) -> None:
    assert negative(golden(), NegativeConfig()).item() == pytest.approx(0.8781668312, rel=1e-6)


def test_undial(golden: Golden) -> None:
    assert undial(golden(), UndialConfig(beta=10)).item() == pytest.approx(1.8780942859, rel=1e-6)


def test_undial_arrives_where_the_logits_are_the_adjusted_reference(golden: Golden) -> None:
    whole = golden().forget
    assert whole.logits_ref is not None
    assert whole.targets is not None
    there = (whole.logits_ref - 10 * F.one_hot(whole.targets, 4)).requires_grad_()
    [gradient] = torch.autograd.grad(undial(golden(logits=there), UndialConfig(beta=10)), there)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize(("beta", "value"), [(1, -0.2973070227), (5, -0.0299114358)])
def test_wga(golden: Golden, beta: float, value: float) -> None:
    assert wga(golden(), WgaConfig(beta=beta)).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(("beta", "value"), [(1, -0.6312781618), (4, -0.3173081349)])
def test_tnpo(golden: Golden, beta: float, value: float) -> None:
    assert tnpo(golden(), TnpoConfig(beta=beta)).item() == pytest.approx(value, rel=1e-6)


def test_wtnpo(golden: Golden) -> None:
    assert wtnpo(golden(), WtnpoConfig(beta=4, alpha=1.5)).item() == pytest.approx(-0.1552512437, rel=1e-6)


def test_satimp_in_the_setting_of_its_authors_and_that_of_open_unlearning(golden: Golden) -> None:
    assert satimp(golden(), SatImpConfig(beta1=5, beta2=0.1)).item() == pytest.approx(-0.0268237476, rel=1e-6)
    assert satimp(golden(), SatImpConfig(beta1=5, beta2=1)).item() == pytest.approx(-0.0103168548, rel=1e-6)
    assert SatImpConfig() == SatImpConfig(beta1=5, beta2=0.1)


def test_satimp_without_importance_is_wga(golden: Golden) -> None:
    one, other = satimp(golden(), SatImpConfig(beta1=2, beta2=0)), wga(golden(), WgaConfig(beta=2))
    assert one.item() == pytest.approx(other.item(), rel=1e-6)


def test_satimp_leaves_certain_tokens_alone_and_stays_finite() -> None:
    inputs, nll = of_nll(0.0, 1e-9, 200.0)
    loss = satimp(inputs, SatImpConfig(beta1=5, beta2=1))
    [gradient] = torch.autograd.grad(loss, nll)
    assert gradient.tolist() == pytest.approx([0, -1e-9 / 3, 0], rel=1e-5)


def test_weights_are_constants() -> None:
    inputs, nll = of_nll(0.5, 2.0, nll_ref=(1.0, 0.25))
    p, q = torch.exp(-nll.detach()), torch.exp(-tensor([1.0, 0.25]))
    for loss, weight in (
        (wga(inputs, WgaConfig(beta=2)), p**2),
        (satimp(inputs, SatImpConfig(beta1=2, beta2=3)), p**2 * (1 - p) ** 3),
        (tnpo(inputs, TnpoConfig(beta=2)), 2 * p**2 / (p**2 + q**2 + 1e-5)),
        (wtnpo(inputs, WtnpoConfig(beta=2, alpha=3)), 2 * p**5 / (p**2 + q**2 + 1e-5)),
    ):
        torch.testing.assert_close(torch.autograd.grad(loss, nll)[0], -weight / 2)


def test_tnpo_has_the_gradient_of_npo_taken_token_by_token() -> None:
    inputs, nll = of_nll(0.5, 2.0, nll_ref=(1.0, 0.25))
    token_wise = (2 / 4 * torch.log1p(torch.exp(4 * (tensor([1.0, 0.25]) - nll)))).mean()
    expected, found = (torch.autograd.grad(loss, nll)[0] for loss in (token_wise, tnpo(inputs, TnpoConfig(beta=4))))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


def test_ceu(golden: Golden) -> None:
    assert ceu(golden(), CeuConfig()).item() == pytest.approx(1.8020703887, rel=1e-6)


def test_ceu_moves_what_the_token_has_to_the_others_in_proportion(golden: Golden) -> None:
    logits = tensor([[2.0, 0, 1, -1]]).requires_grad_()
    tokens = AnswerTokens(torch.ones(1), tensor([0]), 1, targets=tensor([0]), logits=logits)
    inputs = replace(golden(), forget=tokens, totals=Totals(1, 1, 1, 3))
    [gradient] = torch.autograd.grad(ceu(inputs, CeuConfig()), logits)
    p = logits.detach().softmax(-1)[0]
    torch.testing.assert_close(gradient[0], torch.cat([p[:1], -p[0] * p[1:] / (1 - p[0])]))
