"""TNPO and WTNPO, token-wise NPO: climb the cross-entropy of each token as far as it is likelier than to the reference.

    L = -(1/N) sum_t w_t nll_t          w_t = 2 p_t^(beta + alpha) / (p_t^beta + p_ref,t^beta + 1e-5), a constant

over the N forget answer tokens, p_t = exp(-nll_t). TNPO has alpha = 0; then the gradient is that of
(2/beta) mean_t log(1 + (p_t / p_ref,t)^beta), NPO taken token by token. WTNPO's alpha leaves tokens alone that are
forgotten, whatever the reference made of them. Source: arXiv:2502.19301, whose code has the 1e-5 that keeps the quotient finite.
"""

import torch
from torch import Tensor

from grun.config import TnpoConfig, WtnpoConfig
from grun.objectives.base import ObjectiveInputs

__all__ = ["tnpo", "wtnpo"]

_TINY = 1e-5


def tnpo(inputs: ObjectiveInputs, config: TnpoConfig) -> Tensor:
    """Return minus the weighted mean cross-entropy, a scalar in nats; needs the reference's cross-entropy."""
    return _token_wise(inputs, config.beta, 0.0)


def wtnpo(inputs: ObjectiveInputs, config: WtnpoConfig) -> Tensor:
    """As :func:`tnpo`, with tokens weighted by p^alpha on top."""
    return _token_wise(inputs, config.beta, config.alpha)


def _token_wise(inputs: ObjectiveInputs, beta: float, alpha: float) -> Tensor:
    nll, nll_ref = inputs.forget.nll.float(), inputs.forget.nll_ref
    assert nll_ref is not None
    powered, powered_ref = torch.exp(-beta * nll.detach()), torch.exp(-beta * nll_ref.float())
    weight = 2 * torch.exp(-alpha * nll.detach()) * powered / (powered + powered_ref + _TINY)
    return -(weight * nll).sum() / inputs.totals.forget_tokens
