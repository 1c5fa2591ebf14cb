"""What every objective must do in training: run, teach every tensor, lower its loss, and turn away from the answers to forget.

The base has been taught the answers, as a base that is asked to forget has; otherwise terms that leave forgotten tokens
alone would have nothing to do.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from grun.config import ForgetTermConfig, Recipe
from grun.data.prompts import Example, PromptEncoder
from grun.data.splits import Splits, make_request
from grun.lm import CachedPass, FrozenLM, FullPass, Pass, PrefixCache, freeze
from grun.lm.cache_build import cut_into_shards, finish, write_shard
from grun.lm.prefix_cache import CacheProbe, make_spec
from grun.objectives import FORGET_TERMS, AnswerSource
from grun.training import Progress, Task, TorchEngine, build_task, fit
from grun.training.step import forward
from tests.training.conftest import ENVIRONMENT, FORGET, HOLDOUT, RETAIN

SPLITS = Splits(FORGET, RETAIN, HOLDOUT, environment=ENVIRONMENT)
LOGITS, PARAMETERS = {"reading": "logits", "weight": 0.1}, {"reading": "parameters", "weight": 0.1}
UNRELATED = {"path": "given"}

OBJECTIVES: dict[str, dict[str, Any]] = {
    **{kind.model_fields["kind"].default: {"forget": {"kind": kind.model_fields["kind"].default}} for kind in FORGET_TERMS},
    "altpo": {"forget": {"kind": "dpo", "preferred": "alternative"}},
    "satimp of open-unlearning": {"forget": {"kind": "satimp", "beta2": 1.0}},
    "npo, invariant by logits": {"forget": {"kind": "npo"}, "invariance": LOGITS},
    "rmu, invariant by logits": {"forget": {"kind": "rmu"}, "retain": {"kind": "hidden"}, "invariance": LOGITS | UNRELATED},
    "dpo, invariant by parameters": {"forget": {"kind": "dpo"}, "invariance": PARAMETERS},
    "npo, invariant by parameters": {"forget": {"kind": "npo"}, "retain": {"kind": "kl"}, "invariance": PARAMETERS | UNRELATED},
}
"""Every kind in its default setting, and what else a setting of it makes another objective."""


@pytest.fixture(scope="module")
def taught_lm(tiny_lm: FrozenLM) -> FrozenLM:
    """The tiny model, after some steps of ordinary training on all answers."""
    model = copy.deepcopy(tiny_lm.model).requires_grad_(True)
    lm = FrozenLM(model, tiny_lm.tokenizer, (), tiny_lm.info)
    encoder = PromptEncoder(lm.tokenizer, Recipe().prompt, context=lm.context)
    rows = [encoder.encode(record) for record in (*FORGET, *RETAIN)]
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _step in range(60):
        nll = FullPass(lm).answers(rows, None).nll
        optimizer.zero_grad()
        nll.mean().backward()
        optimizer.step()
    return freeze(model, tiny_lm.tokenizer, tiny_lm.info)


def new_task(lm: FrozenLM, objective: Mapping[str, Any], **train: Any) -> Task:
    # one batch is the whole forget set with the same partners, so that losses are comparable between steps
    values = {"epochs": 6, "batch_size": 6, "pairing": "fixed", "learning_rate": 3e-3, "engine": "torch", **train}
    recipe = Recipe.parse(
        {"adapter": {"layers": [1, 3], "rank": 2, "gate": {"kind": "linear"}}, "objective": objective, "train": values}
    )
    return build_task(recipe, SPLITS, make_request(recipe.request, recipe.data, SPLITS), lm)


def train(lm: FrozenLM, task: Task) -> list[Progress]:
    """The real loop, on a whole base."""
    seen: list[Progress] = []

    def see(progress: Progress) -> None:
        seen.append(progress)

    fit(
        TorchEngine(FullPass(lm)),
        task.adapter,
        task.objective,
        task.sampler,
        task.optimizer,
        read_layer=task.read_layer,
        callbacks=[see],
    )
    return seen


def loss_and_gradients(base: Pass, task: Task) -> tuple[float, dict[str, Tensor]]:
    """Of the first batch; the adapter stays as it is."""
    inputs = forward(base, task.adapter, task.sampler.batch(0), task.objective, read_layer=task.read_layer)
    loss = task.objective(inputs, 1).loss
    names, parameters = zip(*task.adapter.named_parameters(), strict=True)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def mean_nll(lm: FrozenLM, task: Task, examples: Sequence[Example]) -> float:
    with torch.no_grad():
        return FullPass(lm).answers(examples, task.adapter).nll.mean().item()


def test_the_table_has_every_kind() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(ForgetTermConfig)[0])}
    assert {objective["forget"]["kind"] for objective in OBJECTIVES.values()} == kinds


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_every_tensor_and_lowers_its_loss(taught_lm: FrozenLM, name: str) -> None:
    task = new_task(taught_lm, OBJECTIVES[name])
    before, gradients = loss_and_gradients(FullPass(taught_lm), task)
    assert [tensor for tensor, gradient in gradients.items() if not gradient.any()] == []
    seen = train(taught_lm, task)
    assert len(seen) == 6
    assert all(math.isfinite(value) for progress in seen for value in progress.metrics.values())
    moments = task.optimizer.state()
    assert all(bool(moments[f"exp_avg_sq/{tensor}"].any()) for tensor in gradients)
    after, _gradients = loss_and_gradients(FullPass(taught_lm), task)
    assert seen[0].metrics["train/loss"] == pytest.approx(before, rel=1e-5)
    assert after < before
    losses = [progress.metrics["train/loss"] for progress in seen]
    assert min(losses) == losses[-1], losses


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if "invariance" not in objective])
def test_every_forget_term_alone_reaches_every_tensor_and_turns_away_from_the_answers(taught_lm: FrozenLM, name: str) -> None:
    alone = {**OBJECTIVES[name], "retain": {"kind": "ce", "weight": 0}, "gate_weight": 0}
    task = new_task(taught_lm, alone)
    known = mean_nll(taught_lm, task, [forms[0] for forms in task.sampler.forget])
    before, gradients = loss_and_gradients(FullPass(taught_lm), task)
    assert [tensor for tensor, gradient in gradients.items() if not gradient.any()] == []
    train(taught_lm, task)
    assert loss_and_gradients(FullPass(taught_lm), task)[0] < before
    # what takes the place of an answer is learnt, and an answer is forgotten
    learns = task.objective.answers is not AnswerSource.OWN
    assert (mean_nll(taught_lm, task, [forms[0] for forms in task.sampler.forget]) < known) == learns


def build_cache(lm: FrozenLM, task: Task, folder: Path) -> PrefixCache:
    """Everything that the first batch runs."""
    batch = task.sampler.batch(0)
    examples = (*batch.forget, *batch.retain, *batch.preferred, *batch.environment)
    spec = make_spec(
        examples, base_digest="", dtype="float32", template={}, cuts=[1], reference_layers=[3], num_layers=lm.num_layers
    )
    for number, rows in enumerate(cut_into_shards(examples, 8)):
        write_shard(lm, spec, rows, folder, number, batch_size=4)
    finish(folder, spec, CacheProbe(loss_difference=0, gradient_rel_error=0))
    return PrefixCache.open(folder, spec)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_cached_and_full_passes_give_the_same_gradients(taught_lm: FrozenLM, tmp_path: Path, name: str) -> None:
    task = new_task(taught_lm, OBJECTIVES[name])
    cache = build_cache(taught_lm, task, tmp_path)
    (full, expected), (cached, found) = (
        loss_and_gradients(base, task) for base in (FullPass(taught_lm), CachedPass(taught_lm.above(1), cache))
    )
    assert cached == pytest.approx(full, rel=1e-5)
    wanted, got = (torch.cat([gradient.flatten() for gradient in each.values()]) for each in (expected, found))
    assert float((wanted - got).norm() / wanted.norm()) < 1e-4
