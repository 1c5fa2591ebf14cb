import torch

from grun.gates import apply_threshold


def test_below_becomes_exactly_zero_and_the_rest_is_untouched() -> None:
    values = torch.tensor([0.0, 0.1, 0.49999, 0.5, 0.7000001, 1.0])
    assert apply_threshold(values, 0.5).tolist() == [0.0, 0.0, 0.0, *values[3:].tolist()]


def test_without_a_threshold_gates_stay_soft() -> None:
    values = torch.tensor([1e-30, 0.2])
    assert torch.equal(apply_threshold(values, None), values)
    assert torch.equal(apply_threshold(values, 0.0), values)


def test_a_not_a_number_is_not_hidden() -> None:
    assert apply_threshold(torch.tensor([float("nan")]), 0.5).isnan().all()
