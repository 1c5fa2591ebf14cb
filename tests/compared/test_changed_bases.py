"""LoRA and full fine-tuning: they start as the base, change what they should and nothing else, and learn the same terms."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grun.compared import ChangedBase, LoraSettings, full_fine_tuning, lora, train_changed
from grun.config import Recipe, TrainConfig
from grun.data.batches import collate
from grun.data.prompts import Example
from grun.data.records import QARecord
from grun.data.splits import Splits, make_request
from grun.errors import TrainingError
from grun.lm import FrozenLM, FullPass, IntervenedLM
from grun.training import Task, build_task
from grun.training.step import forward

pytest.importorskip("peft")

FORGET = tuple(QARecord(f"Where does {name} live?", f"In {town}.") for name, town in (("Ilva", "Harn"), ("Bram", "Oost")))
RETAIN = tuple(QARecord(f"What is made of {stuff}?", f"A {thing}.") for stuff, thing in (("wood", "boat"), ("clay", "pot")))
HOLDOUT = (QARecord("What is made of straw?", "Hats."),)
CONFIG = TrainConfig(epochs=4, batch_size=2, learning_rate=1e-2, weight_decay=0.01)
Change = Callable[[FrozenLM], ChangedBase]
CHANGES: dict[str, Change] = {"lora": lambda lm: lora(lm, seed=0), "full": full_fine_tuning}


@pytest.fixture(params=CHANGES)
def change(request: pytest.FixtureRequest) -> Change:
    return CHANGES[request.param]


def task_of(lm: FrozenLM, forget: dict[str, Any], retain: dict[str, Any] | None = None) -> Task:
    values = {"objective": {"forget": forget, "retain": retain or {"kind": "ce"}}, "adapter": {"layers": [1, 3], "rank": 2}}
    recipe = Recipe.parse({**values, "train": CONFIG.model_dump()})
    splits = Splits(FORGET, RETAIN, HOLDOUT)
    return build_task(recipe, splits, make_request(recipe.request, recipe.data, splits), lm)


def state(lm: FrozenLM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def plain_nll(lm: FrozenLM, example: Example) -> Tensor:
    """Cross-entropy of each answer token of one row, with neither hooks nor padding."""
    model: Any = lm.model
    log_p = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
    first = example.num_prompt_tokens
    return torch.stack([-log_p[place - 1, example.ids[place]] for place in range(first, len(example.ids))])


def test_untrained_it_is_the_base_bit_for_bit(tiny_lm: FrozenLM, change: Change) -> None:
    batch = collate([Example("", (5, 9, 13, 22, 50, 1), 4), Example("", (7, 3, 51, 1), 2)], pad_id=tiny_lm.pad_id)
    assert torch.equal(IntervenedLM(change(tiny_lm).lm).logits(batch), IntervenedLM(tiny_lm).logits(batch))


def test_lora_is_counted_by_hand(tiny_lm: FrozenLM) -> None:
    # r (in + out) for q 32-32, k and v 32-16, o 32-32, gate and up 32-64, down 64-32, in 4 blocks
    sizes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    assert lora(tiny_lm, seed=0).num_trained == 4 * sum(4 * (a + b) for a, b in sizes)
    assert lora(tiny_lm, LoraSettings(rank=1), seed=0).num_trained == 4 * sum(a + b for a, b in sizes)


def test_the_difference_is_scaled_by_alpha_over_rank(tiny_lm: FrozenLM) -> None:
    changed = lora(tiny_lm, LoraSettings(rank=2, alpha=32, dropout=0.5), seed=0)
    learning = dict(changed.named_parameters())
    a, b = (learning[f"model.layers.1.mlp.down_proj.lora_{which}.default.weight"] for which in "AB")
    torch.nn.init.normal_(b)
    model: Any = changed.lm.model
    original: Any = tiny_lm.model
    h = torch.randn(3, 64)
    found = model.model.layers[1].mlp.down_proj(h)
    torch.testing.assert_close(found, original.model.layers[1].mlp.down_proj(h) + 16 * h @ a.T @ b.T)


def test_full_fine_tuning_trains_every_weight_once(tiny_lm: FrozenLM) -> None:
    changed = full_fine_tuning(tiny_lm)
    assert changed.num_trained == sum(parameter.numel() for parameter in tiny_lm.model.parameters())
    decayed, kept = (group["params"] for group in changed.parameter_groups(0.01))
    assert isinstance(decayed, list)
    assert isinstance(kept, list)
    assert sum(p.numel() for p in kept) == (2 * 4 + 1) * 32  # two norms a block and one at the end
    assert sum(p.numel() for p in decayed + kept) == changed.num_trained


def test_only_what_should_learn_changes_and_the_original_never(tiny_lm: FrozenLM, change: Change) -> None:
    original = state(tiny_lm)
    changed = change(tiny_lm)
    before, learning = state(changed.lm), {name for name, _ in changed.named_parameters()}
    steps = train_changed(changed, task_of(tiny_lm, {"kind": "npo", "weight": 0.1375}), CONFIG, seed=0)
    assert steps == 4
    moved = {name for name, value in changed.lm.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved - {"lm_head.weight"} == learning - {"lm_head.weight"}
    assert all(torch.equal(value, original[name]) for name, value in tiny_lm.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in tiny_lm.model.parameters())
    assert not changed.lm.model.training


def test_npo_starts_at_its_value_at_the_reference(tiny_lm: FrozenLM, change: Change) -> None:
    task = task_of(tiny_lm, {"kind": "npo", "weight": 0.1375, "beta": 0.1})
    batch = task.sampler.batch(0)
    output = task.objective(forward(change(tiny_lm).base(2), None, batch, task.objective), 1)
    npo = 2 / 0.1 * math.log(2)
    assert output.terms["forget/npo"].item() == pytest.approx(npo, rel=1e-6)
    kept = torch.cat([plain_nll(tiny_lm, example) for example in batch.retain]).mean().item()
    assert output.loss.item() == pytest.approx(0.1375 * npo + kept, rel=1e-5)
    assert "gate/bce" not in output.terms


def test_gd_and_its_gradient_equal_a_plain_computation(tiny_lm: FrozenLM, change: Change) -> None:
    changed, task = change(tiny_lm), task_of(tiny_lm, {"kind": "gd"}, {"kind": "ce", "weight": 2.0})
    with torch.no_grad():  # away from B = 0
        for _name, parameter in changed.named_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch, learning = task.sampler.batch(0), [parameter for _name, parameter in changed.named_parameters()]
    loss = task.objective(forward(changed.base(2), None, batch, task.objective), 1).loss
    forget, retain = (torch.cat([plain_nll(changed.lm, row) for row in rows]).mean() for rows in (batch.forget, batch.retain))
    expected = 2 * retain - forget
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for found, plain in zip(torch.autograd.grad(loss, learning), torch.autograd.grad(expected, learning), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_the_reference_stays_the_original_while_the_copy_moves(tiny_lm: FrozenLM, change: Change) -> None:
    changed = change(tiny_lm)
    base = changed.base(1)
    rows = [Example("a", (5, 9, 13, 22, 50, 1), 4), Example("b", (7, 3, 51, 1), 2), Example("c", (8, 4, 52, 53, 1), 2)]
    first = base.reference(rows[:2])
    with torch.no_grad():
        for _name, parameter in changed.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # asked again in another order, with one new row
    again, expected = base.reference([rows[2], rows[0], rows[0]]), FullPass(tiny_lm).reference([rows[2], rows[0], rows[0]])
    torch.testing.assert_close(again.nll, expected.nll)
    assert torch.equal(again.row, expected.row)
    assert again.num_rows == 3
    torch.testing.assert_close(first.nll, FullPass(tiny_lm).reference(rows[:2]).nll)
    assert not torch.allclose(base.answers(rows[:2], None).nll, first.nll)
    hidden = base.reference(rows, read_layer=2, keep_logits=True)
    plain = FullPass(tiny_lm).reference(rows, read_layer=2, keep_logits=True)
    assert hidden.hidden is not None
    assert hidden.logits is not None
    assert torch.equal(hidden.hidden, plain.hidden if plain.hidden is not None else torch.empty(0))


def test_training_lowers_the_objective_and_the_seed_decides(tiny_lm: FrozenLM, change: Change) -> None:
    task = task_of(tiny_lm, {"kind": "idk"})

    def trained(seed: int) -> tuple[float, dict[str, Tensor]]:
        changed = change(tiny_lm)
        train_changed(changed, task, CONFIG, seed=seed)
        return task.objective(forward(changed.base(1), None, task.sampler.batch(0), task.objective), 1).loss.item(), state(
            changed.lm
        )

    before = task.objective(forward(change(tiny_lm).base(1), None, task.sampler.batch(0), task.objective), 1).loss.item()
    loss, weights = trained(0)
    assert loss < before
    assert all(torch.equal(value, weights[name]) for name, value in trained(0)[1].items())


def test_lora_drops_inputs_in_training_only(tiny_lm: FrozenLM) -> None:
    task = task_of(tiny_lm, {"kind": "gd"})
    weights = []
    for seed in (0, 1):
        changed = lora(tiny_lm, LoraSettings(dropout=0.5), seed=0)
        train_changed(changed, task, CONFIG, seed=seed)
        weights.append(torch.cat([parameter.flatten() for _name, parameter in changed.named_parameters()]))
    assert not torch.equal(*weights)


def test_a_loss_that_is_not_finite_ends_training(tiny_lm: FrozenLM) -> None:
    changed = full_fine_tuning(tiny_lm)
    with torch.no_grad():
        next(parameter for _name, parameter in changed.named_parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="must stay finite"):
        train_changed(changed, task_of(tiny_lm, {"kind": "gd"}), CONFIG, seed=0)
    assert not changed.lm.model.training
