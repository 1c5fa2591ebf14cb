"""The optimizer and the schedule, by hand-worked values."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grun.errors import TrainingError
from grun.interventions import Adapter
from grun.interventions.loreft import NO_DECAY
from grun.lm import FrozenLM, FullPass
from grun.training import AdapterOptimizer, Task, TorchEngine
from grun.training.schedules import learning_rate_scale

MakeTask = Callable[..., Task]


class FakeOtherWorkerEngine(TorchEngine):
    """Pretends that another worker adds `others` to every number that is summed."""

    def __init__(self, lm: FrozenLM, others: float) -> None:
        super().__init__(FullPass(lm))
        self.others = others

    def sum_(self, values: Tensor) -> None:
        values.add_(self.others)


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in adapter.named_parameters()}


def _set_gradients(adapter: Adapter, value: float) -> None:
    for parameter in adapter.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_learning_rate_rises_and_falls_linearly() -> None:
    scales = [learning_rate_scale(step, total_steps=6, warmup_steps=2) for step in range(6)]
    assert scales == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [learning_rate_scale(step, total_steps=4, warmup_steps=0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_a_warmup_as_long_as_the_run_never_falls() -> None:
    assert [learning_rate_scale(step, total_steps=2, warmup_steps=2) for step in range(2)] == [0.5, 1.0]


def test_the_first_step_moves_every_number_by_the_scaled_learning_rate(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    """AdamW's first step is lr g/|g|, and takes lr times the decay of each decayed number; LoReFT's basis is not decayed."""
    task = make_task(learning_rate=0.01, warmup_steps=2, weight_decay=0.5)
    before = _tensors(task.adapter)
    _set_gradients(task.adapter, 0.25)
    metrics = task.optimizer.step(TorchEngine(FullPass(tiny_lm)), 0, {"a": torch.tensor(2.0)})
    for name, value in task.adapter.named_parameters():
        decayed = before[name] if NO_DECAY in name else before[name] * (1 - 0.005 * 0.5)
        torch.testing.assert_close(value.detach(), decayed - 0.005, rtol=1e-6, atol=1e-6)
    size = sum(value.numel() for value in before.values())
    expected = {"a": 2.0, "train/grad_norm": 0.25 * math.sqrt(size), "train/learning_rate": 0.005}
    assert metrics == pytest.approx(expected, rel=1e-6)
    assert all(parameter.grad is None for parameter in task.adapter.parameters())


@pytest.mark.parametrize(("clip", "kept"), [(0.5, 0.5), (1e6, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(tiny_lm: FrozenLM, make_task: MakeTask, clip: float, kept: float) -> None:
    task = make_task(grad_clip=clip)
    size = sum(parameter.numel() for parameter in task.adapter.parameters())
    entry = 1 / math.sqrt(size)  # a gradient of norm 1
    _set_gradients(task.adapter, entry)
    assert task.optimizer.step(TorchEngine(FullPass(tiny_lm)), 0, {})["train/grad_norm"] == pytest.approx(1.0, rel=1e-5)
    moments = [value for key, value in task.optimizer.state().items() if key.startswith("exp_avg/")]
    assert len(moments) == len(list(task.adapter.parameters()))
    for moment in moments:
        torch.testing.assert_close(moment, torch.full_like(moment, 0.1 * kept * entry), rtol=1e-4, atol=0)


def test_weight_decay_never_touches_the_basis(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    task = make_task(weight_decay=0.9, learning_rate=0.1)
    before = _tensors(task.adapter)
    for step in range(3):
        _set_gradients(task.adapter, 1e-30)  # a trace, which the first step asks for and which moves nothing
        task.optimizer.step(TorchEngine(FullPass(tiny_lm)), step, {})
    for name, value in task.adapter.named_parameters():
        assert torch.allclose(value, before[name], atol=1e-7) == (NO_DECAY in name), name
    for _layer, gated in task.adapter:
        basis = gated.intervention.basis.detach()
        torch.testing.assert_close(basis.T @ basis, torch.eye(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["term", "gradient", "other worker"])
def test_what_is_not_finite_is_named_and_never_applied(tiny_lm: FrozenLM, make_task: MakeTask, bad: float, place: str) -> None:
    task = make_task(weight_decay=0.1)
    engine = FakeOtherWorkerEngine(tiny_lm, bad if place == "other worker" else 0.0)
    before = _tensors(task.adapter)
    _set_gradients(task.adapter, 0.1)
    name, parameter = next(iter(task.adapter.named_parameters()))
    if place == "gradient":
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = bad
    terms = {"fine": torch.tensor(1.0), "forget/gd": torch.tensor(bad if place == "term" else 1.0)}
    named = {"term": r"\['forget/gd'\]", "gradient": name, "other worker": r"\['fine', 'forget/gd'\]"}[place]
    with pytest.raises(TrainingError, match=rf"non-finite .*{named}.* in step 8; nothing was applied"):
        task.optimizer.step(engine, 7, terms)
    assert all(torch.equal(before[name], value) for name, value in task.adapter.named_parameters())
    assert task.optimizer.state() == {}


@pytest.mark.parametrize("gradient", [None, 0.0])
def test_a_tensor_that_learns_nothing_is_named_in_the_first_step(
    tiny_lm: FrozenLM, make_task: MakeTask, gradient: float | None
) -> None:
    task = make_task()
    before = _tensors(task.adapter)
    idle = "interventions.1.gate"
    names = [name for name in before if name.startswith(idle)]

    def gradients() -> None:
        _set_gradients(task.adapter, 0.1)
        for name, parameter in task.adapter.named_parameters():
            if name in names:
                parameter.grad = None if gradient is None else torch.full_like(parameter, gradient)

    gradients()
    with pytest.raises(TrainingError) as error:
        task.optimizer.step(TorchEngine(FullPass(tiny_lm)), 0, {})
    assert f"got none for {names};" in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in task.adapter.named_parameters())
    gradients()
    task.optimizer.step(TorchEngine(FullPass(tiny_lm)), 1, {})  # later a closed gate may leave a tensor alone


def test_a_tensor_may_be_idle_on_one_worker(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    """A worker's few rows may leave a tensor alone; what counts is the sum."""
    task = make_task()
    metrics = task.optimizer.step(FakeOtherWorkerEngine(tiny_lm, 0.5), 0, {"a": torch.tensor(1.0)})
    assert metrics["a"] == 1.5
    assert all(bool(m.any()) for key, m in task.optimizer.state().items() if key.startswith("exp_avg/"))


def test_state_survives_a_new_optimizer(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    def run(split: bool) -> dict[str, Tensor]:
        task: Any = make_task(learning_rate=0.01)
        optimizer = task.optimizer
        for step in range(4):
            if split and step == 2:
                moments = optimizer.state()
                optimizer = AdapterOptimizer(task.adapter, optimizer.config, total_steps=optimizer.total_steps)
                optimizer.load_state(moments)
            _set_gradients(task.adapter, 0.1 * (-2) ** step)
            optimizer.step(TorchEngine(FullPass(tiny_lm)), step, {})
        return _tensors(task.adapter)

    straight, resumed = run(split=False), run(split=True)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
