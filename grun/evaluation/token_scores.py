"""What is kept of the logits of an answer: three numbers a token. Logits of the vocabulary's width live no longer than a batch.

    ln p_t          log-probability of the answer token
    right_t         whether it is the model's first choice
    z_t             (ln p_t - mu_t) / sigma_t,   mu = sum_v p_v ln p_v,   sigma^2 = sum_v p_v (ln p_v)^2 - mu^2, at least 1e-6

Source of z: min-k++ (Zhang et al. 2025), as in open-unlearning. Shapes: N answer tokens of a batch, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TokenScores", "token_scores"]

_CHUNK = 256
"""Tokens whose distribution is in memory as float32 at a time."""
_LEAST_VARIANCE = 1e-6
_LEAST_LOG = -1e4
"""Stands for ln 0 in the moments, where its weight is 0; some models mask a part of their vocabulary."""


@dataclass(frozen=True)
class TokenScores:
    """Numbers of answer tokens, on the CPU."""

    log_prob: Tensor
    """(N,) float32, in nats."""
    right: Tensor
    """(N,) bool."""
    standardised: Tensor
    """(N,) float32."""


def token_scores(logits: Tensor, targets: Tensor, positions: Tensor | None = None) -> TokenScores:
    """Reduce logits (N, V) that predict the tokens `targets` (N,).

    Args:
        positions: (M,) which of them to reduce; None for all.
    """
    if positions is None:
        positions = torch.arange(len(targets), device=targets.device)
    parts = [_reduce(logits[chunk], targets[chunk]) for chunk in positions.split(_CHUNK)]
    return TokenScores(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


def _reduce(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logs = logits.float().log_softmax(-1)
    log_prob = logs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    right = logs.argmax(-1) == targets
    probabilities = logs.exp()
    finite = logs.clamp(min=_LEAST_LOG)
    mean = (probabilities * finite).sum(-1)
    # around the mean rather than as a difference of squares, which cancels where one token has all the probability
    variance = (probabilities * (finite - mean.unsqueeze(-1)).square()).sum(-1).clamp(min=_LEAST_VARIANCE)
    return log_prob, right, (log_prob - mean) / variance.sqrt()
