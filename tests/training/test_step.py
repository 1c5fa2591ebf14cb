"""One step against a plain computation: one row at a time, no padding, no hooks, every formula written out."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grun.config import Recipe
from grun.data.prompts import Example
from grun.data.refusals import REFUSALS
from grun.data.splits import Splits
from grun.errors import ConfigError
from grun.interventions import Adapter
from grun.lm import FrozenLM, FullPass
from grun.objectives.invariance import invariance
from grun.objectives.rmu import direction
from grun.training import Task, environment_records
from grun.training.step import forward
from tests.training.conftest import ENVIRONMENT, FORGET

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
    sides = (batch.forget, batch.retain, batch.preferred, batch.environment)
    forget, retain, preferred, unrelated = ([PlainRow(lm, task.adapter, example, read) for example in side] for side in sides)
    with torch.no_grad():
        forget_ref, retain_ref, preferred_ref, _unrelated = (
            [PlainRow(lm, None, example, read) for example in side] for side in sides
        )

    def excess(rows: list[PlainRow], references: list[PlainRow]) -> Tensor:
        return torch.stack([row.nll.sum() - ref.nll.sum() for row, ref in zip(rows, references, strict=True)])

    def undial() -> Tensor:
        losses = []
        for example, row, ref in zip(batch.forget, forget, forget_ref, strict=True):
            for index, token in enumerate(example.ids[example.num_prompt_tokens :]):
                adjusted = ref.log_p[index].clone()
                adjusted[token] -= 10
                losses.append(-(adjusted.softmax(-1) * row.log_p[index]).sum())
        return torch.stack(losses).mean()

    def penalty() -> Tensor:
        environments = [retain, unrelated] if unrelated else [retain]
        gradients = [
            torch.cat([row.nll + (row.log_p.exp() * row.log_p).sum(-1) for row in environment]).mean()
            for environment in environments
        ]
        return torch.stack(gradients).square().sum()

    terms: dict[str, Callable[[], Tensor]] = {
        "gd": lambda: -torch.cat([row.nll for row in forget]).mean(),
        "idk": lambda: torch.cat([row.nll for row in forget]).mean(),
        "npo": lambda: -2 / 0.1 * torch.log(torch.sigmoid(0.1 * excess(forget, forget_ref))).mean(),
        "dpo": lambda: (
            -2 / 0.1 * torch.log(torch.sigmoid(0.1 * (excess(forget, forget_ref) - excess(preferred, preferred_ref)))).mean()
        ),
        "undial": undial,
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
    edit = 3 * terms[forget_kind]() + 0.5 * terms[retain_kind]()
    regulariser = task.objective.config.invariance
    if regulariser is not None:
        edit = edit + regulariser.weight * penalty()
    return edit - 10 * torch.cat([opened, closed]).log().mean()


PLAIN = [
    ("gd", "ce", None),
    ("npo", "kl", None),
    ("idk", "ce", None),
    ("rmu", "hidden", None),
    ("negative", "ce", None),
    ("dpo", "ce", None),
    ("dpo", "kl", {"weight": 2, "path": "given"}),
    ("undial", "ce", {"weight": 2}),
]


@pytest.mark.parametrize(("forget", "retain", "regulariser"), PLAIN)
def test_loss_and_gradients_equal_a_plain_computation(
    tiny_lm: FrozenLM, make_task: MakeTask, forget: str, retain: str, regulariser: dict[str, Any] | None
) -> None:
    kinds = ("idk" if forget == "negative" else forget, retain)  # the same formula, on other answers
    task = make_task(
        {
            "forget": {"kind": forget, "weight": 3},
            "retain": {"kind": retain, "weight": 0.5},
            "invariance": regulariser,
            "gate_weight": 10,
        }
    )
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


def test_answers_that_take_the_place_of_the_own_ones_come_from_the_record(tiny_lm: FrozenLM, make_task: MakeTask) -> None:
    def answers(forget: dict[str, Any], side: str, invariance: dict[str, Any] | None = None) -> list[str]:
        rows = getattr(make_task({"forget": forget, "invariance": invariance}).sampler, side)
        examples: Sequence[Example] = rows if side == "environment" else [plain for [plain] in rows]
        decode: Callable[..., str] = tiny_lm.tokenizer.decode  # type: ignore[assignment] # a list of texts only for a list of lists
        return [decode(example.answer_ids, skip_special_tokens=True).strip() for example in examples]

    alternatives = [record.alternative_answers for record in FORGET]
    for drawn in (answers({"kind": "negative"}, "forget"), answers({"kind": "dpo", "preferred": "alternative"}, "preferred")):
        assert all(answer in known for answer, known in zip(drawn, alternatives, strict=True))
        assert drawn == answers({"kind": "negative"}, "forget")  # the seed decides
    assert set(answers({"kind": "dpo"}, "preferred")) <= set(REFUSALS)
    assert answers({"kind": "dpo"}, "forget") == [record.answer for record in FORGET]
    assert answers({"kind": "gd"}, "preferred") == []
    assert answers({"kind": "gd"}, "environment") == []
    assert answers({"kind": "gd"}, "environment", {"path": "given"}) == [record.answer for record in ENVIRONMENT]
    assert answers({"kind": "gd"}, "environment", {}) == []  # the retain rows are one as they are
    drawn_by = {
        tuple(forms[0].ids for forms in make_task({"forget": {"kind": "negative"}}, seed=s).sampler.forget) for s in range(8)
    }
    assert len(drawn_by) > 1


@pytest.mark.parametrize("path", [None, "given"])
def test_the_parameter_reading_is_the_square_of_theta_times_gradient(
    tiny_lm: FrozenLM, make_task: MakeTask, path: str | None
) -> None:
    task = make_task({"forget": {"kind": "gd"}, "invariance": {"reading": "parameters", "path": path}}, engine="torch")
    parameters = list(task.adapter.parameters())
    batch = task.sampler.batch(0)

    def by_hand() -> float:
        total = 0.0
        for environment in (batch.retain, batch.environment) if path else (batch.retain,):
            loss = FullPass(tiny_lm).answers(environment, task.adapter).nll.mean()
            gradients = torch.autograd.grad(loss, parameters)
            total += sum((p * g).square().sum().item() for p, g in zip(parameters, gradients, strict=True))
        return total

    penalty = invariance(forward(FullPass(tiny_lm), task.adapter, batch, task.objective))
    assert penalty.item() == pytest.approx(by_hand(), rel=1e-4)
    slopes = torch.autograd.grad(penalty, parameters)
    # along its own gradient, the penalty rises by as much as the gradient says
    length = torch.cat([slope.flatten() for slope in slopes]).norm()
    with torch.no_grad():
        around = list[float]()
        for step in (1e-3, -2e-3):
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.add_(step * slope / length)
            with torch.enable_grad():
                around.append(by_hand())
    assert (around[0] - around[1]) / 2e-3 == pytest.approx(float(length), rel=1e-2)


def test_an_environment_file_that_was_never_read_is_named() -> None:
    recipe = Recipe.parse({"objective": {"invariance": {"path": "unread.jsonl"}}})
    with pytest.raises(
        ConfigError, match=r"`objective.invariance.path` must be set before the data are prepared, got 'unread.jsonl'"
    ):
        environment_records(recipe, Splits(FORGET, FORGET, FORGET))
