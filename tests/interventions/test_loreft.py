"""LoReFT: golden values, and a basis that stays orthonormal."""

import pytest
import torch
from pyvene.models.interventions import TrainableIntervention
from pyvene.models.modeling_utils import do_intervention
from torch import Tensor

from grun.interventions import LoReFT

HIDDEN_SIZE, RANK = 12, 3
RAW = "rotate_layer.parametrizations.weight.original"


@pytest.fixture
def loreft() -> LoReFT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LoReFT(HIDDEN_SIZE, RANK)


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))


def deviation(loreft: LoReFT) -> float:
    """Largest element of R^T R - I."""
    basis = loreft.basis.detach()
    return float((basis.T @ basis - torch.eye(basis.shape[1])).abs().max())


def train(loreft: LoReFT, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Pull edited rows towards random targets, for which R has to turn."""
    h, target = rows(32), rows(32, seed=1)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward((loreft(h) - target).square().sum(-1).mean())
        optimizer.step()


def test_reference_example() -> None:
    loreft = LoReFT(3, 1)
    loreft.set_basis(torch.tensor([[0.0], [0.6], [0.8]]))
    loreft.learned_source.load_state_dict({"weight": torch.tensor([[0.5, 0.0, -1.0]]), "bias": torch.tensor([0.25])})
    h = torch.tensor([1.0, 2.0, 3.0])
    # s = W h + b - R^T h = (0.5 - 3 + 0.25) - (1.2 + 2.4) = -5.85; edit = R s
    torch.testing.assert_close(loreft.edit(h), torch.tensor([0.0, 0.6 * -5.85, 0.8 * -5.85]), rtol=0, atol=1e-6)
    torch.testing.assert_close(loreft.edit(h) @ loreft.basis, torch.tensor([-5.85]), rtol=0, atol=1e-6)


def test_pyreft_sees_h_plus_edit(loreft: LoReFT) -> None:
    """`do_intervention` is what pyreft calls, with one position per row."""
    base = rows(4).unsqueeze(1)
    edited = do_intervention(base, None, loreft, None)
    assert edited.shape == base.shape
    torch.testing.assert_close(edited, base + loreft.edit(base), rtol=0, atol=1e-6)
    assert isinstance(loreft, TrainableIntervention)
    assert loreft.is_source_constant


def test_forward_keeps_the_dtype_and_computes_in_float32(loreft: LoReFT) -> None:
    h = rows(4).bfloat16()
    edited = loreft(h)
    assert edited.dtype == torch.bfloat16
    assert torch.equal(edited, (h.float() + loreft.edit(h.float())).bfloat16())


def test_edit_stays_in_the_column_space(loreft: LoReFT) -> None:
    edit, basis = loreft.edit(rows(8)), loreft.basis
    assert edit.abs().max() > 0.1
    torch.testing.assert_close(edit @ basis @ basis.T, edit, rtol=0, atol=1e-6)


def test_edited_component_is_the_learned_source(loreft: LoReFT) -> None:
    """Inside the subspace h is replaced, R^T Phi(h) = W h + b; outside it nothing moves."""
    h = rows(8)
    inside, outside = loreft.basis, torch.eye(HIDDEN_SIZE) - loreft.basis @ loreft.basis.T
    torch.testing.assert_close(loreft(h) @ inside, loreft.learned_source(h), rtol=0, atol=1e-5)
    torch.testing.assert_close(loreft(h) @ outside, h @ outside, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("hidden_size", "rank"), [(3, 1), (12, 3), (4, 4), (64, 63)])
def test_set_basis_keeps_given_columns_and_their_signs(hidden_size: int, rank: int) -> None:
    loreft = LoReFT(hidden_size, rank)
    basis = torch.linalg.qr(torch.randn(hidden_size, rank, generator=torch.Generator().manual_seed(2)))[0]
    for columns in (basis, -basis, torch.eye(hidden_size)[:, :rank], -torch.eye(hidden_size)[:, :rank]):
        loreft.set_basis(columns)
        torch.testing.assert_close(loreft.basis, columns, rtol=0, atol=1e-5)
    assert loreft.get_parameter(RAW).requires_grad


def test_basis_stays_orthonormal_through_training(loreft: LoReFT) -> None:
    before = loreft.basis.detach().clone()
    assert deviation(loreft) < 1e-6
    optimizer = torch.optim.AdamW(loreft.parameters(), lr=0.1, weight_decay=0)
    train(loreft, optimizer, 100)
    assert (loreft.basis - before).abs().max() > 0.1
    assert deviation(loreft) < 1e-5


def test_weight_decay_on_the_raw_tensor_destroys_the_basis(loreft: LoReFT) -> None:
    """Why the tensor is excluded from decay: torch casts its decayed unit diagonal to the integer 0."""
    train(loreft, torch.optim.AdamW(loreft.parameters(), lr=0.1, weight_decay=0.1), 1)
    assert not loreft.basis.any()


def test_gradient_reaches_every_parameter(loreft: LoReFT) -> None:
    parameters = dict(loreft.named_parameters())
    assert parameters.keys() == {RAW, "learned_source.weight", "learned_source.bias"}
    gradients = torch.autograd.grad(loreft(rows(8)).square().sum(), tuple(parameters.values()))
    assert all(gradient.any() for gradient in gradients)


def test_state_is_complete_and_training_goes_on_from_it(loreft: LoReFT) -> None:
    copy = LoReFT(HIDDEN_SIZE, RANK)
    train(loreft, torch.optim.SGD(loreft.parameters(), lr=0.1), 3)
    copy.load_state_dict(loreft.state_dict())
    for one in (loreft, copy):
        train(one, torch.optim.SGD(one.parameters(), lr=0.1), 5)
    assert torch.equal(loreft.basis, copy.basis)
    assert torch.equal(loreft(rows(4)), copy(rows(4)))
    assert deviation(copy) < 1e-5


@pytest.mark.parametrize("name", [RAW, "learned_source.weight", "learned_source.bias"])
def test_loading_is_strict(loreft: LoReFT, name: str) -> None:
    state = loreft.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\)"):
        loreft.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\)"):
        loreft.load_state_dict({**state, "rotate_layer": torch.zeros(HIDDEN_SIZE, RANK)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        loreft.load_state_dict({**state, name: torch.zeros(7)})
