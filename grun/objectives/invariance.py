"""ILU's regulariser: further tuning on ordinary data, an environment, should not pull at what was learnt.

    L = sum_e || d l_e(w o theta) / dw ||^2  at w = 1          l_e: mean cross-entropy over the answer tokens of environment e

Source: arXiv:2506.01339, after arXiv:1907.02893. What w multiplies is left open there, and here the recipe says it:

    logits        one number w on the logits z:  dl/dw = (1/N) sum_t [sum_v p_tv z_tv - z_ty] = (1/N) sum_t [nll_t - H(p_t)]
    parameters    one number for each parameter of the adapter:  dl/dw = theta o dl/dtheta

The first needs no derivative of a derivative; the second does, and so attention has to be one that can be differentiated
twice. dl/dw is linear in the shares that workers hold of an environment, its square is not. So the shares are summed over
the workers before they are squared: one more all-reduce a step, and the only term that needs one. With it, as with all
terms, the values and gradients of all workers add up to those of one worker that holds the whole batch.

Shapes: N answer tokens of an environment, V vocabulary, M numbers w.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from grun.objectives.base import AnswerTokens, EnvironmentGradient, ObjectiveInputs

__all__ = ["invariance", "of_logits", "of_parameters"]


def of_logits(tokens: AnswerTokens, num_tokens: int) -> Tensor:
    """Return a worker's share (1,) of dl/dw for a w on the logits; needs logits (N, V).

    Args:
        num_tokens: answer tokens of the environment over all workers.
    """
    assert tokens.logits is not None
    log_p = F.log_softmax(tokens.logits.float(), dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1)
    return (tokens.nll.float() - entropy).sum().reshape(1) / num_tokens


def of_parameters(tokens: AnswerTokens, num_tokens: int, parameters: Sequence[Tensor]) -> Tensor:
    """Return a worker's share (M,) of dl/dw for a w on each parameter, itself differentiable; arguments as :func:`of_logits`."""
    loss = tokens.nll.float().sum() / num_tokens
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([(theta * gradient).reshape(-1) for theta, gradient in zip(parameters, gradients, strict=True)])


def invariance(inputs: ObjectiveInputs) -> Tensor:
    """Return this worker's share of the penalty, a scalar."""
    return torch.stack([_share_of_square(environment) for environment in inputs.environments]).sum()


def _share_of_square(environment: EnvironmentGradient) -> Tensor:
    """The share s of a worker in |G|^2, G = sum of s: its value is <G, s>, its gradient <2 G, ds>; both add up over workers."""
    share, total = environment.share, environment.total
    return 2 * torch.dot(total, share) - torch.dot(total, share.detach())
