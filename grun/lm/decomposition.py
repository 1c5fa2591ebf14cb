"""ReALLM's decomposition of a weight (arXiv:2405.13155): a low-rank part in full precision, and the rest in NormalFloat.

    (L1, L2) <- the best r components of W - Q       randomised SVD, 10 components more than it keeps
    Q        <- NF_b(W - L1 L2)                      blocks of 64 numbers, each with its largest magnitude as scale
    m         = norm of each column of Q + L1 L2
    W_hat     = m * (Q + L1 L2) / || Q + L1 L2 ||    column by column

in turns for some rounds, from Q = 0. ReALLM then tunes L1, L2 and m. Here the base is frozen and they stay, so m scales
each column to the norm it has. Its neural part, a decoder (HNeRV) that generates a weight from a small code, is left out:
Q is NormalFloat alone.

Rounding to blocks that are scaled anew is no projection, so a round may be worse than the one before. The best round is
kept, and plain NormalFloat (L1 L2 = 0) competes: more rounds never give more error, and no matrix fares worse than under NF_b.

The result is multiplied out and used in the base's own precision: it shows what the format does to the answers, and
saves no memory.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from grun.config import BaseVariant

__all__ = ["BLOCK", "Decomposition", "NormalFloat", "code_book", "decompose", "decompose_layer", "normal_float"]

BLOCK = 64
"""Numbers that share a scale."""

_OVERSAMPLING = 10
_POWER_ITERATIONS = 2


@lru_cache(maxsize=8)
def code_book(bits: int) -> Tensor:
    """The 2^b levels of NormalFloat, rising, from -1 to 1 with an exact 0 (QLoRA, arXiv:2305.14314).

    Quantiles of the standard normal, evenly spaced in probability: 2^(b-1) from the centre down and 2^(b-1) + 1 from it
    up, of which the centre, 0, is one and the same; divided by the largest. The outermost probability is the mean
    of what the two sides would have by themselves: half a step, 1 / (2 (2^b - 1)) and 1 / (2 * 2^b), away from 1.
    """
    half = 2 ** (bits - 1)
    outermost = 1 - (1 / (2 * (2**bits - 1)) + 1 / (2 * 2**bits)) / 2
    above = torch.special.ndtri(torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(outermost, 0.5, half, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return (levels / levels[-1]).float()


@dataclass(frozen=True)
class NormalFloat:
    """A matrix in NormalFloat."""

    codes: Tensor
    """(blocks, 64) uint8, the level of each number; rows of the matrix behind each other, the last block filled with zeros."""
    scales: Tensor
    """(blocks,) float32, the largest magnitude of each block."""
    shape: tuple[int, int]
    """Shape of the matrix."""
    bits: int
    """Bits of a code."""

    def weights(self) -> Tensor:
        """The matrix (m, n), float32."""
        levels = code_book(self.bits).to(self.codes.device)[self.codes.int()] * self.scales[:, None]
        return levels.flatten()[: self.shape[0] * self.shape[1]].view(self.shape)


def normal_float(matrix: Tensor, *, bits: int = 4) -> NormalFloat:
    """Round each number of a float32 matrix (m, n) to the nearest level of its block."""
    rows, columns = matrix.shape
    blocks = nn.functional.pad(matrix.flatten(), (0, -matrix.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(-1)
    levels = code_book(bits).to(matrix.device)
    # a block of zeros has the scale 0, and rounds to the level 0
    unit = blocks / scales.where(scales > 0, torch.ones_like(scales))[:, None]
    codes = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2)
    return NormalFloat(codes.to(torch.uint8), scales, (rows, columns), bits)


@dataclass(frozen=True)
class Decomposition:
    """A weight W (m, n) as a low-rank part, a NormalFloat part, and the norms of their sum."""

    left: Tensor
    """L1 (m, r), float32."""
    right: Tensor
    """L2 (r, n), float32."""
    rest: NormalFloat
    """Q (m, n)."""
    norms: Tensor
    """m (n,), float32."""

    def weights(self) -> Tensor:
        """W_hat (m, n), float32."""
        total = self.rest.weights() + self.left @ self.right
        own: Tensor = total.norm(dim=0)
        return total * (self.norms / own.where(own > 0, torch.ones_like(own)))


@torch.no_grad()
def decompose(weight: Tensor, *, rank: int, rounds: int, bits: int = 4, seed: int = 0) -> Decomposition:
    """Decompose a weight (m, n); the same seed gives the same result.

    Args:
        rank: r; at most the smaller side is used. 0 leaves plain NormalFloat.
        rounds: alternations; the best of them is returned.
    """
    matrix = weight.float()
    rank = min(rank, *matrix.shape)
    left, right = matrix.new_zeros(matrix.shape[0], rank), matrix.new_zeros(rank, matrix.shape[1])
    rest = normal_float(matrix, bits=bits)
    best, least = (left, right, rest), (matrix - rest.weights()).norm()
    quantised = torch.zeros_like(matrix)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rounds if rank else 0):
        left, right = _leading(matrix - quantised, rank, generator)
        low = left @ right
        rest = normal_float(matrix - low, bits=bits)
        quantised = rest.weights()
        error = (matrix - low - quantised).norm()
        if error < least:
            best, least = (left, right, rest), error
    left, right, rest = best
    return Decomposition(left, right, rest, (rest.weights() + left @ right).norm(dim=0))


def _leading(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The leading components of a matrix (m, n) as factors (m, r) and (r, n), by a randomised SVD (Halko et al., 2011)."""
    width = min(rank + _OVERSAMPLING, *matrix.shape)
    probes = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    basis, _ = torch.linalg.qr(matrix @ probes)
    for _ in range(_POWER_ITERATIONS):
        basis, _ = torch.linalg.qr(matrix.T @ basis)
        basis, _ = torch.linalg.qr(matrix @ basis)
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u[:, :rank] * s[:rank], v[:rank]


def decompose_layer(layer: nn.Linear, name: str, variant: BaseVariant) -> None:
    """Give a layer the weight W_hat, in the precision of its own.

    Args:
        name: path of the layer below the blocks: each has random numbers of its own, in whatever order layers come.
    """
    rank = 0 if variant.kind == "nf4" else variant.rank_for(*layer.weight.shape)
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())
    found = decompose(layer.weight, rank=rank, rounds=variant.rounds, seed=seed)
    layer.weight = nn.Parameter(found.weights().to(layer.weight.dtype), requires_grad=False)
