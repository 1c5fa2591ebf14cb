"""NormalFloat against its published levels, and the alternation of low-rank and quantised part."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from grun.config import BaseVariant
from grun.lm.decomposition import BLOCK, NormalFloat, code_book, decompose, decompose_layer, normal_float

PUBLISHED_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Table of QLoRA's appendix on NormalFloat."""


def error(weight: Tensor, *, rank: int, rounds: int, bits: int = 4) -> float:
    """|W - W_hat| as a share of |W|."""
    return float((decompose(weight, rank=rank, rounds=rounds, bits=bits).weights() - weight).norm() / weight.norm())


def test_four_bit_levels_are_the_published_ones() -> None:
    assert code_book(4).tolist() == pytest.approx(PUBLISHED_NF4, abs=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_rise_from_minus_one_to_one_through_an_exact_zero(bits: int) -> None:
    levels = code_book(bits)
    assert len(levels) == 2**bits
    assert (levels.diff() > 0).all()
    assert levels[[0, 2 ** (bits - 1) - 1, -1]].tolist() == [-1, 0, 1]


def test_numbers_go_to_the_nearest_level_of_their_block() -> None:
    matrix = torch.zeros(2, BLOCK)
    # halfway between 0 and the level above is 0.0398: the scale of the first block is 10, of the second 1
    matrix[0, :4] = torch.tensor([-10.0, 0.39, 0.41, 7.0])
    matrix[1, :3] = torch.tensor([0.2, 0.9, 1.0])
    found = normal_float(matrix)
    assert found.scales.tolist() == [10, 1]
    assert found.codes[0, :5].tolist() == [0, 7, 8, 14, 7]
    expected = torch.zeros(2, BLOCK)
    expected[0, :4] = 10 * torch.tensor([-1.0, 0.0, 0.07958, 0.722957])
    expected[1, :3] = torch.tensor([0.16093, 1.0, 1.0])
    torch.testing.assert_close(found.weights(), expected, rtol=0, atol=1e-5)


def test_blocks_run_on_over_rows_and_the_last_may_be_short() -> None:
    matrix = torch.randn(3, 40)
    found = normal_float(matrix)
    flat = matrix.flatten()
    assert found.codes.shape == (2, BLOCK)
    assert found.scales.tolist() == [flat[:64].abs().max(), flat[64:].abs().max()]
    assert found.weights().shape == (3, 40)
    again = normal_float(found.weights())
    assert torch.equal(again.codes, found.codes)
    assert torch.equal(again.weights(), found.weights())


def test_zeros_stay_zeros() -> None:
    zeros = torch.zeros(4, 32)
    assert torch.equal(normal_float(zeros).weights(), zeros)
    assert torch.equal(decompose(zeros, rank=2, rounds=3).weights(), zeros)


def test_a_matrix_of_the_format_is_reproduced() -> None:
    """A strong part of rank 2, and levels of NormalFloat in rows and columns that it does not touch."""
    strong = torch.randn(32, 2) @ torch.randn(2, 64) * 100
    levels = NormalFloat(torch.randint(16, (16, BLOCK)).to(torch.uint8), torch.rand(16) + 0.5, (16, 64), 4).weights()
    levels = normal_float(levels).weights()  # a block need not hold its largest level
    weight = torch.block_diag(strong, levels)
    assert error(weight, rank=2, rounds=1) < 1e-6
    assert error(weight, rank=1, rounds=40) > 1e-3
    assert error(levels, rank=2, rounds=3) < 1e-7


@pytest.mark.parametrize("bits", [3, 4])
def test_error_falls_with_rounds_and_rank_and_is_below_plain_normal_float(bits: int) -> None:
    weight = torch.randn(96, 4) @ torch.randn(4, 128) + 0.3 * torch.randn(96, 128)
    plain = float((normal_float(weight, bits=bits).weights() - weight).norm() / weight.norm())
    by_rounds = [error(weight, rank=4, rounds=rounds, bits=bits) for rounds in (1, 2, 5, 10, 40)]
    assert all(later < earlier for earlier, later in itertools.pairwise(by_rounds))
    by_rank = [error(weight, rank=rank, rounds=10, bits=bits) for rank in (0, 1, 2, 4, 16, 64)]
    assert all(higher < lower for lower, higher in itertools.pairwise(by_rank))
    assert by_rank[0] == pytest.approx(plain, rel=1e-6)
    assert by_rank[1] < plain


@pytest.mark.parametrize("seed", range(5))
def test_no_further_round_and_no_low_rank_part_ever_makes_it_worse(seed: int) -> None:
    """Spread over five orders of magnitude, where blocks hide small numbers behind large ones."""
    weight = torch.randn(24, 70, generator=torch.Generator().manual_seed(seed)).mul(3).exp()
    errors = [error(weight, rank=1, rounds=rounds) for rounds in range(1, 8)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(errors))
    assert errors[0] <= error(weight, rank=0, rounds=1) * (1 + 1e-6)


def test_the_low_rank_part_is_the_best_of_its_rank() -> None:
    """Against the exact SVD, on a spectrum that falls as slowly as that of weights does."""
    weight = torch.randn(80, 120)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    found = decompose(weight, rank=8, rounds=1)
    assert (found.left.shape, found.right.shape) == ((80, 8), (8, 120))
    best = (weight - u[:, :8] * s[:8] @ v[:8]).norm()
    assert best <= (weight - found.left @ found.right).norm() < 1.02 * best


def test_column_norms_are_those_of_the_sum_and_scale_it() -> None:
    found = decompose(torch.randn(48, 64), rank=3, rounds=4)
    total = found.rest.weights() + found.left @ found.right
    torch.testing.assert_close(found.norms, total.square().sum(0).sqrt())
    torch.testing.assert_close(found.weights(), total)
    doubled = type(found)(found.left, found.right, found.rest, 2 * found.norms)
    torch.testing.assert_close(doubled.weights(), 2 * total)


def test_the_seed_decides_and_layers_have_their_own() -> None:
    weight = torch.randn(40, 64)
    states = torch.get_rng_state()
    same = [decompose(weight, rank=2, rounds=3, seed=5).weights() for _ in range(2)]
    assert torch.equal(*same)
    assert torch.equal(torch.get_rng_state(), states)
    assert not torch.equal(same[0], decompose(weight, rank=2, rounds=3, seed=6).weights())
    variant = BaseVariant(kind="lowrank_nf4", rank=2, rounds=3)
    layers = [nn.Linear(64, 40, dtype=torch.bfloat16) for _ in range(3)]
    for layer, name in zip(layers, ("0.q", "0.q", "1.q"), strict=True):
        layer.weight.data = weight.bfloat16()
        decompose_layer(layer, name, variant)
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert not torch.equal(layers[0].weight, layers[2].weight)
    assert layers[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("shape", "rank"), [((128, 128), 2), ((4096, 4096), 64), ((1024, 4096), 16), ((32, 64), 1)])
def test_rank_is_a_64th_of_the_smaller_side(shape: tuple[int, int], rank: int) -> None:
    assert BaseVariant(kind="lowrank_nf4").rank_for(*shape) == rank
    assert BaseVariant(kind="lowrank_nf4", rank=7).rank_for(*shape) == 7
