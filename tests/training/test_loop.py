"""The loop: every objective learns, any number of workers follows the same trajectory, callbacks see and stop it."""

import copy
import itertools
import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from grun.errors import TrainingError
from grun.lm import FrozenLM, FullPass, freeze
from grun.training import Callback, FitResult, MetricsSpool, Progress, StopTraining, Task, TorchEngine, fit

MakeTask = Callable[..., Task]


@dataclass
class FakeLink:
    """Where workers that are threads of this process meet."""

    world_size: int
    slots: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world_size, timeout=60)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        values = [self.slots[other] for other in range(self.world_size)]
        self.barrier.wait()
        return values


class FakeThreadEngine:
    """A worker that is a thread, with a base of its own; numbers are summed by hand."""

    def __init__(self, lm: FrozenLM, link: FakeLink, rank: int) -> None:
        self.base = FullPass(freeze(copy.deepcopy(lm.model), lm.tokenizer, lm.info))
        self.lm = self.base.lm
        self.link = link
        self.rank = rank
        self.world_size = link.world_size

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def sum_(self, values: Tensor) -> None:
        values.copy_(torch.stack(self.gather(values.clone())).sum(0))

    def gather(self, value: Any) -> list[Any]:
        return self.link.exchange(self.rank, value)


class Recorder:
    """Keeps every progress."""

    def __init__(self) -> None:
        self.steps: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.steps.append(progress)

    @property
    def losses(self) -> list[float]:
        return [progress.metrics["train/loss"] for progress in self.steps]


def _fit(engine: Any, task: Task, *callbacks: Callback) -> FitResult:
    return fit(
        engine, task.adapter, task.objective, task.sampler, task.optimizer, read_layer=task.read_layer, callbacks=callbacks
    )


FORGET_KINDS, RETAIN_KINDS = ("gd", "npo", "idk", "rmu"), ("ce", "kl", "hidden")


@pytest.mark.parametrize(("forget", "retain"), list(itertools.product(FORGET_KINDS, RETAIN_KINDS)))
def test_every_objective_learns_with_every_tensor(tiny_lm: FrozenLM, make_task: MakeTask, forget: str, retain: str) -> None:
    # one batch is the whole forget set with the same partners, so that losses are comparable between steps
    task = make_task({"forget": {"kind": forget}, "retain": {"kind": retain}}, epochs=6, batch_size=6, pairing="fixed")
    frozen = copy.deepcopy(tiny_lm.model.state_dict())
    seen = Recorder()
    assert _fit(TorchEngine(FullPass(tiny_lm)), task, seen) == FitResult(6, stopped_early=False)
    assert all(math.isfinite(value) for progress in seen.steps for value in progress.metrics.values())
    assert all(later < earlier for earlier, later in itertools.pairwise(seen.losses)), seen.losses
    moments = task.optimizer.state()
    for name, _parameter in task.adapter.named_parameters():
        assert bool(moments[f"exp_avg_sq/{name}"].any()), name
    assert all(torch.equal(frozen[name], value) for name, value in tiny_lm.model.state_dict().items())


OBJECTIVES: dict[str, dict[str, Any]] = {
    "gd-ce": {"forget": {"kind": "gd"}, "retain": {"kind": "ce"}},
    "npo-kl": {"forget": {"kind": "npo"}, "retain": {"kind": "kl"}},
    "rmu-hidden": {"forget": {"kind": "rmu"}, "retain": {"kind": "hidden"}},
    "dpo-kl": {"forget": {"kind": "dpo"}, "retain": {"kind": "kl"}},
    "undial-ce": {"forget": {"kind": "undial"}, "retain": {"kind": "ce"}},
    "invariant-logits": {"forget": {"kind": "gd"}, "retain": {"kind": "kl"}, "invariance": {"weight": 5}},
    "invariant-parameters": {"forget": {"kind": "npo"}, "invariance": {"reading": "parameters", "weight": 5, "path": "given"}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_workers_follow_the_trajectory_of_one(tiny_lm: FrozenLM, make_task: MakeTask, name: str) -> None:
    def new() -> tuple[Task, Recorder]:
        return make_task(OBJECTIVES[name], engine="torch"), Recorder()

    (alone, seen), pair = new(), [new(), new()]
    _fit(TorchEngine(FullPass(tiny_lm)), alone, seen)
    link = FakeLink(2)
    # which attention is allowed is the process's to know; threads that change it and change it back would disturb each other
    with sdpa_kernel(SDPBackend.MATH), ThreadPoolExecutor(2) as pool:
        fits = [
            pool.submit(_fit, FakeThreadEngine(tiny_lm, link, rank), task, recorder) for rank, (task, recorder) in enumerate(pair)
        ]
        results = [future.result() for future in fits]
    assert results == [FitResult(8, stopped_early=False)] * 2
    for task, recorder in pair:
        for tensor, value in alone.adapter.state_dict().items():
            torch.testing.assert_close(task.adapter.state_dict()[tensor], value, rtol=0, atol=5e-6)
        for mine, his in zip(seen.steps, recorder.steps, strict=True):
            assert his.metrics == pytest.approx(mine.metrics, rel=1e-4, abs=1e-6)
    (left, _), (right, _) = pair
    for tensor, value in left.adapter.state_dict().items():
        assert torch.equal(value, right.adapter.state_dict()[tensor]), tensor


def test_gate_warmup_counts_optimizer_steps_from_one(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    task = make_task({"forget": {"kind": "gd"}, "retain": {"kind": "ce"}, "gate_weight": 10.0, "gate_warmup_steps": 4})
    seen = Recorder()
    _fit(TorchEngine(FullPass(tiny_lm)), task, seen)
    for progress, share in zip(seen.steps, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0], strict=True):
        m = progress.metrics
        expected = share * (m["forget/gd"] + m["retain/nll_nats"]) + 10 * m["gate/bce"]
        assert m["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_before_it_is_applied(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    task = make_task()
    seen = Recorder()

    def poison(progress: Progress) -> None:
        if progress.step == 2:
            with torch.no_grad():
                next(progress.adapter.parameters()).view(-1)[0] = math.nan

    def remember(progress: Progress) -> None:
        state.update({name: value.clone() for name, value in progress.adapter.state_dict().items()})

    state: dict[str, Tensor] = {}
    with pytest.raises(TrainingError, match=r"non-finite terms \[.*'train/loss'.*\] in step 3; nothing was applied"):
        _fit(TorchEngine(FullPass(tiny_lm)), task, seen, poison, remember)
    assert len(seen.steps) == 2
    assert all(torch.equal(state[name].nan_to_num(), v.nan_to_num()) for name, v in task.adapter.state_dict().items())


def test_callbacks_see_every_step_in_order(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    task = make_task()
    first, second = Recorder(), Recorder()
    _fit(TorchEngine(FullPass(tiny_lm)), task, first, second)
    assert [progress.step for progress in first.steps] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {progress.total_steps for progress in first.steps} == {8}
    assert [progress.is_last for progress in first.steps] == [False] * 7 + [True]
    assert first.steps == second.steps
    assert first.steps[0].adapter is task.adapter


def test_a_callback_ends_training_with_what_was_learnt(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    stopped, straight = make_task(), make_task()
    states: list[dict[str, Tensor]] = []

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise StopTraining

    def remember(progress: Progress) -> None:
        states.append({name: value.clone() for name, value in progress.adapter.state_dict().items()})

    seen = Recorder()
    assert _fit(TorchEngine(FullPass(tiny_lm)), stopped, seen, stop) == FitResult(3, stopped_early=True)
    assert len(seen.steps) == 3
    _fit(TorchEngine(FullPass(tiny_lm)), straight, remember)
    assert all(torch.equal(states[2][name], value) for name, value in stopped.adapter.state_dict().items())


def test_the_spool_holds_a_line_for_every_step(tmp_path: Path, tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    path = tmp_path / "metrics.jsonl"
    ticks = itertools.count(start=1000, step=0.25)
    seen = Recorder()
    _fit(TorchEngine(FullPass(tiny_lm)), make_task(epochs=1), MetricsSpool(path, clock=lambda: next(ticks)), seen)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["time_ms"]) for line in lines] == [(1, 1_000_000), (2, 1_000_250)]
    assert [line["metrics"] for line in lines] == [dict(progress.metrics) for progress in seen.steps]
    assert set(lines[0]["metrics"]) == {
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "forget/gd",
        "forget/nll_nats",
        "retain/nll_nats",
        "gate/bce",
    }


def test_a_spool_that_goes_on_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        MetricsSpool(path, clock=lambda: 2.0).write(step, {"a": step / 2})
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"step": 1, "time_ms": 2000, "metrics": {"a": 0.5}, "crc32": 1553570069},
        {"step": 2, "time_ms": 2000, "metrics": {"a": 1.0}, "crc32": 1594489149},
    ]


def test_without_gates_every_tensor_learns_and_there_is_no_gate_term(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    task = make_task(adapter={"gate": {"kind": "none"}})
    before = {name: parameter.detach().clone() for name, parameter in task.adapter.named_parameters()}
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)

    fit(TorchEngine(FullPass(tiny_lm)), task.adapter, task.objective, task.sampler, task.optimizer, callbacks=[watch])
    assert len(seen) == task.optimizer.total_steps
    assert all("gate/bce" not in progress.metrics and "forget/gd" in progress.metrics for progress in seen)
    assert not any(torch.equal(parameter, before[name]) for name, parameter in task.adapter.named_parameters())
