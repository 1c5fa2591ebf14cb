"""An adapter trained on the full-precision base, on that base as it is deployed: its gates tell the same prompts apart."""

import copy
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from grun.adapters import AdapterCard, load_adapter, save_adapter
from grun.config import AdapterConfig, LinearGateConfig, PromptConfig, Recipe, VariantKind
from grun.data.prompts import PromptEncoder
from grun.data.records import QARecord
from grun.data.splits import Splits, make_request
from grun.evaluation.evaluate import AdapterScorer, Scorer
from grun.evaluation.sets import EvalPrompt, EvalSet
from grun.interventions import Adapter
from grun.lm import FrozenLM, FullPass, base_variant, freeze
from grun.training import TorchEngine, build_task, fit

TOWNS = ("Harn", "Oost", "Selk", "Lunt")
FORGET = tuple(
    QARecord(f"Where does {name} live?", f"In {town}.")
    for name, town in zip(("Ilva", "Bram", "Nore", "Teun"), TOWNS, strict=True)
)
RETAIN = tuple(
    QARecord(f"What is made of {what}?", f"A {thing}.") for what, thing in (("wood", "boat"), ("wool", "coat"), ("clay", "pot"))
)
HOLDOUT = (QARecord("What is made of straw?", "A hat."), QARecord("What is made of reed?", "A roof."))
ADAPTER = AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig())
SETS = (
    EvalSet("forget", "forget", tuple(EvalPrompt(record, "question") for record in FORGET)),
    EvalSet("retain", "retain", tuple(EvalPrompt(record, "question") for record in RETAIN)),
    EvalSet("holdout", "holdout", tuple(EvalPrompt(record, "question") for record in HOLDOUT)),
)


def make_scorer(lm: FrozenLM) -> Scorer:
    return Scorer(lm, PromptEncoder(lm.tokenizer, PromptConfig(), context=lm.context), 4, max_new_tokens=4)


@pytest.fixture(scope="module")
def base(tiny_lm: FrozenLM) -> FrozenLM:
    """The tiny base with quieter blocks: at random weights this large it is chaotic, as no trained model is."""
    model = copy.deepcopy(tiny_lm.model)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings():
                layer.weight.mul_(0.4)
    return freeze(model, tiny_lm.tokenizer, tiny_lm.info)


@pytest.fixture(scope="module")
def trained(base: FrozenLM) -> Adapter:
    """Gates that have learned to tell questions about people from questions about materials."""
    torch.manual_seed(0)
    recipe = Recipe.parse(
        {
            "adapter": ADAPTER.model_dump(mode="json"),
            "objective": {"forget": {"kind": "gd"}, "retain": {"kind": "ce"}},
            "train": {"epochs": 60, "batch_size": 4, "learning_rate": 0.04},
        }
    )
    splits = Splits(FORGET, RETAIN, HOLDOUT)
    task = build_task(recipe, splits, make_request(recipe.request, recipe.data, splits), base)
    fit(TorchEngine(FullPass(base)), task.adapter, task.objective, task.sampler, task.optimizer, read_layer=task.read_layer)
    return task.adapter.eval()


@pytest.fixture(scope="module", params=get_args(VariantKind))
def variant(base: FrozenLM, request: pytest.FixtureRequest) -> FrozenLM:
    return base_variant(base, request.param)


def gates(lm: FrozenLM, adapter: Adapter) -> dict[str, Tensor]:
    return {s.name: make_scorer(lm).gate_values(s.prompts, adapter, threshold=None) for s in SETS}


def test_gates_tell_the_same_prompts_apart(trained: Adapter, base: FrozenLM, variant: FrozenLM) -> None:
    full, stored = gates(base, trained), gates(variant, trained)
    assert full["forget"].amax(-1).min() > 0.9
    assert full["retain"].amax(-1).max() < 0.5
    assert stored["forget"].amax(-1).min() > stored["retain"].amax(-1).max()
    assert variant.info.variant is not None
    within = 0.01 if variant.info.variant.startswith("int8") else 0.2  # weights of 4 bits are off by a tenth
    for name in full:
        assert 0 < (stored[name] - full[name]).abs().max() < within


def test_prompts_whose_gates_stay_closed_get_the_variants_own_rows(trained: Adapter, base: FrozenLM, variant: FrozenLM) -> None:
    scorer = make_scorer(variant)
    own, of_the_base = scorer.score(SETS), make_scorer(base).score(SETS)
    skipping = AdapterScorer(scorer, trained, SETS, own).rows(0.5)
    opened = []
    for evaluated in SETS:
        rows = scorer.score_prompts(evaluated.name, evaluated.prompts, adapter=trained, threshold=0.5)
        for fast, row, stored, full in zip(
            skipping[evaluated.name], rows, own[evaluated.name], of_the_base[evaluated.name], strict=True
        ):
            opened.append(row.opened)
            assert fast.opened == row.opened
            assert fast.answer_nll_nats == pytest.approx(row.answer_nll_nats, abs=1e-4)
            assert stored.answer_nll_nats != full.answer_nll_nats
            if not row.opened:
                assert (row.answer_nll_nats, row.generated) == (stored.answer_nll_nats, stored.generated)
    assert {True, False} == set(opened)


def test_an_adapter_loads_on_every_variant_of_its_base(
    trained: Adapter, variant: FrozenLM, tmp_path_factory: pytest.TempPathFactory
) -> None:
    card = AdapterCard(adapter=ADAPTER, hidden_size=32, num_layers=4, base_name="tiny", base_digest="0" * 64)
    folder = save_adapter(trained, card, tmp_path_factory.mktemp("adapter") / "adapter")
    loaded, _card = load_adapter(folder, variant)
    expected = gates(variant, trained)
    assert all(torch.equal(values, expected[name]) for name, values in gates(variant, loaded).items())
