"""A base as it is deployed: its answers are close to the full-precision base's, and every promise to an adapter still holds."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from grun.config import AdapterConfig, LinearGateConfig, VariantKind
from grun.data.batches import collate
from grun.data.prompts import Example
from grun.errors import ModelError
from grun.gates import LinearGate
from grun.interventions import Adapter, build_adapter
from grun.lm import FrozenLM, IntervenedLM, base_variant
from tests.lm.shapes import CONFIGS, DEPTH, WIDTH, shaped_lm

KINDS = get_args(VariantKind)
EXAMPLES = (
    Example("a", (5, 9, 11, 42, 7, 30, 8, 21, 50, 1), 7),
    Example("b", (17, 3, 29, 1), 2),
    Example("c", (60, 2, 33, 14, 25, 19, 1), 4),
)
PROMPTS = tuple(example.prompt_ids for example in EXAMPLES)


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    return shaped_lm(request.param)


@pytest.fixture(scope="module", params=KINDS)
def variant(lm: FrozenLM, request: pytest.FixtureRequest) -> FrozenLM:
    return base_variant(lm, request.param)


@pytest.fixture
def adapter() -> Adapter:
    return build_adapter(
        AdapterConfig(layers=(1, 2), rank=4, gate=LinearGateConfig()), hidden_size=WIDTH, num_layers=DEPTH, seed=0
    )


def shut(adapter: Adapter) -> None:
    for _, intervention in adapter:
        assert isinstance(intervention.gate, LinearGate)
        nn.init.constant_(intervention.gate.linear.bias, -1e4)


def linear_weights(lm: FrozenLM) -> dict[str, Tensor]:
    """Weights of the blocks' linear layers, multiplied out."""
    modules = {name: m for block in enumerate(lm.blocks) for name, m in _named(block) if isinstance(m, nn.Linear)}
    return {name: m.weight.dequantize() if hasattr(m.weight, "qdata") else m.weight for name, m in modules.items()}


def _named(block: tuple[int, nn.Module]) -> list[tuple[str, nn.Module]]:
    index, module = block
    return [(f"{index}.{name}", m) for name, m in module.named_modules()]


def test_closed_gates_give_the_variants_own_output_bit_for_bit(variant: FrozenLM, adapter: Adapter) -> None:
    batch = collate(EXAMPLES, pad_id=0)
    own, edited = IntervenedLM(variant), IntervenedLM(variant, adapter)
    assert not torch.equal(edited.logits(batch), own.logits(batch))
    shut(adapter)
    assert torch.equal(edited.logits(batch), own.logits(batch))
    assert edited.generate(PROMPTS, max_new_tokens=5).texts == own.generate(PROMPTS, max_new_tokens=5).texts


def test_padding_and_batching_do_not_change_a_variants_answers(variant: FrozenLM, adapter: Adapter) -> None:
    model = IntervenedLM(variant, adapter)
    together = model.answers(collate(EXAMPLES, pad_id=0))
    alone = [model.answers(collate([example], pad_id=0, side="left")) for example in EXAMPLES]
    torch.testing.assert_close(together.nll, torch.cat([each.nll for each in alone]), rtol=1e-4, atol=1e-4)
    one_by_one = [model.generate([prompt], max_new_tokens=5).texts[0] for prompt in PROMPTS]
    assert list(model.generate(PROMPTS, max_new_tokens=5).texts) == one_by_one


def test_a_variant_differs_from_its_base_and_leaves_it_alone(lm: FrozenLM) -> None:
    batch = collate(EXAMPLES, pad_id=0)
    before, weights = IntervenedLM(lm).logits(batch), {n: p.clone() for n, p in lm.model.named_parameters()}
    kinds = {name: type(module) for name, module in lm.model.named_modules()}
    for kind in KINDS:
        variant = base_variant(lm, kind)
        assert variant.info.digest == lm.info.digest
        assert variant.info.variant is not None
        assert variant.info.variant.startswith(kind)
        assert not torch.equal(IntervenedLM(variant).logits(batch), before)
    assert lm.info.variant is None
    assert torch.equal(IntervenedLM(lm).logits(batch), before)
    assert {name: type(module) for name, module in lm.model.named_modules()} == kinds
    assert all(torch.equal(p, weights[n]) for n, p in lm.model.named_parameters())


def test_hooks_on_a_variant_do_not_fire_in_its_base(lm: FrozenLM) -> None:
    variant = base_variant(lm, "nf4")
    calls: list[str] = []
    handle = variant.blocks[0].register_forward_hook(lambda *_args: calls.append("variant"))
    IntervenedLM(lm).logits(collate(EXAMPLES, pad_id=0))
    assert calls == []
    IntervenedLM(variant).logits(collate(EXAMPLES, pad_id=0))
    assert calls == ["variant"]
    handle.remove()


def test_only_linear_layers_of_blocks_change_and_the_rest_is_shared(lm: FrozenLM) -> None:
    variant = base_variant(lm, "int8")
    assert variant.head.weight is lm.head.weight
    assert variant.model.get_input_embeddings().weight is lm.model.get_input_embeddings().weight
    assert len(linear_weights(variant)) >= 4 * DEPTH
    assert all(not parameter.requires_grad for parameter in variant.model.parameters())


def test_a_variant_of_a_variant_is_refused(lm: FrozenLM) -> None:
    with pytest.raises(ModelError, match=r"full-precision base, got .* as int8 \(torchao.*load that base anew"):
        base_variant(base_variant(lm, "int8"), "int4")
