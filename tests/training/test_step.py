"""One step against a plain computation: one row at a time, no padding, no hooks, every formula written out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grun.data.prompts import Example
from grun.interventions import Adapter
from grun.lm import FrozenLM, FullPass
from grun.objectives.rmu import direction
from grun.training import Task
from grun.training.step import forward

MakeTask = Callable[..., Task]


class PlainRow:
    """What the model says of one row: `nll` (N,), `log_p` (N, V), `hidden` (N, D) after block `read`, `gates` (L,)."""

    def __init__(self, lm: FrozenLM, adapter: Adapter | None, example: Example, read: int) -> None:
        model: Any = lm.model
        ids = torch.tensor([example.ids])
        length, last = len(example.ids), example.num_prompt_tokens - 1
        causal = torch.full((length, length), -math.inf).triu(1)[None, None]
        h = model.model.embed_tokens(ids)
        rotary = model.model.rotary_emb(h, torch.arange(length)[None])
        gates = []
        for index, block in enumerate(model.model.layers):
            h = block(h, attention_mask=causal, position_embeddings=rotary)
            if adapter is not None and index in adapter.layers:
                logit, edited = _edited(adapter, index, h[0, last])
                gates.append(logit)
                h = torch.cat([h[:, :last], edited[None, None], h[:, last + 1 :]], dim=1)
            if index == read:
                self.hidden = h[0, last:-1]
        self.log_p = F.log_softmax(model.lm_head(model.model.norm(h))[0, last:-1], dim=-1)
        self.nll = -self.log_p[range(length - last - 1), example.ids[last + 1 :]]
        self.gates = torch.stack(gates) if gates else torch.empty(0)


def _edited(adapter: Adapter, layer: int, h: Tensor) -> tuple[Tensor, Tensor]:
    """u(h) = w h + a and h + sigmoid(u) R (W h + b - R^T h)."""
    at: Any = adapter.at(layer)
    (weight, bias), loreft = at.gate.parameters(), at.intervention
    logit = (weight @ h + bias).squeeze()
    basis, source = loreft.basis, loreft.learned_source
    return logit, h + torch.sigmoid(logit) * (basis @ (source.weight @ h + source.bias - basis.T @ h))


def _plain_loss(lm: FrozenLM, task: Task, kinds: tuple[str, str]) -> Tensor:
    batch = task.sampler.batch(0)
    read = task.adapter.layers[-1]
    forget, retain = ([PlainRow(lm, task.adapter, example, read) for example in side] for side in (batch.forget, batch.retain))
    with torch.no_grad():
        forget_ref, retain_ref = (
            [PlainRow(lm, None, example, read) for example in side] for side in (batch.forget, batch.retain)
        )
    terms = {
        "gd": lambda: -torch.cat([row.nll for row in forget]).mean(),
        "idk": lambda: torch.cat([row.nll for row in forget]).mean(),
        "npo": lambda: torch.stack(
            [
                -2 / 0.1 * torch.log(torch.sigmoid(0.1 * (row.nll.sum() - ref.nll.sum())))
                for row, ref in zip(forget, forget_ref, strict=True)
            ]
        ).mean(),
        "rmu": lambda: (torch.cat([row.hidden for row in forget]) - 20 * direction(0, lm.hidden_size)).square().mean(),
        "ce": lambda: torch.cat([row.nll for row in retain]).mean(),
        "kl": lambda: torch.cat(
            [(ref.log_p.exp() * (ref.log_p - row.log_p)).sum(-1) for row, ref in zip(retain, retain_ref, strict=True)]
        ).mean(),
        "hidden": lambda: (
            (torch.cat([row.hidden for row in retain]) - torch.cat([row.hidden for row in retain_ref])).square().mean()
        ),
    }
    opened = torch.sigmoid(torch.cat([row.gates for row in forget]))
    closed = 1 - torch.sigmoid(torch.cat([row.gates for row in retain]))
    forget_kind, retain_kind = kinds
    return 3 * terms[forget_kind]() + 0.5 * terms[retain_kind]() - 10 * torch.cat([opened, closed]).log().mean()


@pytest.mark.parametrize("kinds", [("gd", "ce"), ("npo", "kl"), ("idk", "ce"), ("rmu", "hidden")], ids="+".join)
def test_loss_and_gradients_equal_a_plain_computation(tiny_lm: FrozenLM, make_task: MakeTask, kinds: tuple[str, str]) -> None:
    objective = {"forget": {"kind": kinds[0], "weight": 3}, "retain": {"kind": kinds[1], "weight": 0.5}, "gate_weight": 10}
    task = make_task(objective)
    with torch.no_grad():  # an adapter that has moved away from its first values, so that no term is at its special point
        for parameter in task.adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    parameters = list(task.adapter.parameters())
    inputs = forward(FullPass(tiny_lm), task.adapter, task.sampler.batch(0), task.objective, read_layer=task.read_layer)
    loss = task.objective(inputs, 1).loss
    expected = _plain_loss(tiny_lm, task, kinds)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    gradients, expected_gradients = torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)
    scale = max(float(gradient.abs().max()) for gradient in expected_gradients)
    for gradient, plain in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, plain, rtol=1e-4, atol=1e-5 * scale)


def test_shares_of_the_workers_add_up_to_the_whole(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    task = make_task({"forget": {"kind": "npo"}, "retain": {"kind": "kl"}})

    def loss(rank: int, world_size: int) -> float:
        batch = task.sampler.batch(1, rank=rank, world_size=world_size)
        return float(task.objective(forward(FullPass(tiny_lm), task.adapter, batch, task.objective), 1).loss.detach())

    assert loss(0, 2) + loss(1, 2) == pytest.approx(loss(0, 1), rel=1e-6)


def test_only_what_the_terms_need_is_handed_over(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    plain = make_task({"forget": {"kind": "gd"}, "retain": {"kind": "ce"}})
    inputs = forward(FullPass(tiny_lm), plain.adapter, plain.sampler.batch(0), plain.objective)
    for tokens in (inputs.forget, inputs.retain):
        assert {tokens.logits, tokens.hidden, tokens.nll_ref, tokens.logits_ref, tokens.hidden_ref} == {None}
    greedy = make_task({"forget": {"kind": "npo"}, "retain": {"kind": "kl"}})
    inputs = forward(FullPass(tiny_lm), greedy.adapter, greedy.sampler.batch(0), greedy.objective)
    assert inputs.forget.nll_ref is not None
    assert inputs.forget.logits is None
    assert inputs.retain.logits_ref is not None
    assert not inputs.retain.logits_ref.requires_grad
    assert inputs.retain.nll_ref is None
