"""The same adapter gives the same numbers inside pyreft."""

from typing import Any, Literal

import pyreft
import pytest
import torch
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from grun.adapters.pyreft_export import last_prompt_locations, to_pyreft
from grun.config import AdapterConfig, LinearGateConfig, NoGateConfig
from grun.data.batches import TokenBatch, collate
from grun.data.prompts import Example
from grun.errors import AdapterError
from grun.interventions import Adapter, build_adapter
from grun.lm import BaseInfo, FrozenLM, IntervenedLM, freeze

PROMPTS = ((5, 9, 13, 22), (7, 3), (40, 41, 42, 43, 44, 45))
EXAMPLES = [Example("", (*prompt, 50, 51 + index, 1), len(prompt)) for index, prompt in enumerate(PROMPTS)]


def pyreft_logits(reft: Any, batch: TokenBatch, num_layers: int) -> Tensor:
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    _, output = reft(inputs, unit_locations=last_prompt_locations(batch.last_prompt, num_layers))
    logits: Tensor = output.logits
    return logits


def median_gate(adapter: Adapter, lm: FrozenLM, batch: TokenBatch) -> float:
    """A threshold that closes some of the batch's gates and leaves others open."""
    gate_logits = IntervenedLM(lm, adapter).answers(batch).gate_logits
    assert gate_logits is not None
    values = gate_logits.sigmoid().flatten().sort().values
    return float(values[len(values) // 2 - 1 : len(values) // 2 + 1].mean())


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_logits_of_a_padded_batch(adapter: Adapter, lm: FrozenLM, side: Literal["left", "right"]) -> None:
    batch = collate(EXAMPLES, pad_id=lm.pad_id, side=side)
    ours = IntervenedLM(lm, adapter).logits(batch)
    assert not torch.equal(ours, IntervenedLM(lm).logits(batch))
    assert torch.equal(pyreft_logits(to_pyreft(adapter, lm, threshold=None), batch, 2), ours)


@torch.no_grad()
def test_the_threshold_closes_the_same_gates(adapter: Adapter, lm: FrozenLM) -> None:
    batch = collate(EXAMPLES, pad_id=lm.pad_id)
    threshold = median_gate(adapter, lm, batch)
    ours = IntervenedLM(lm, adapter, threshold=threshold).logits(batch)
    assert not torch.equal(ours, IntervenedLM(lm, adapter).logits(batch))
    assert torch.equal(pyreft_logits(to_pyreft(adapter, lm, threshold=threshold), batch, 2), ours)
    closed = pyreft_logits(to_pyreft(adapter, lm, threshold=1.0), batch, 2)
    assert torch.equal(closed, IntervenedLM(lm).logits(batch))


@torch.no_grad()
def test_logits_on_a_bfloat16_base(adapter: Adapter, lm: FrozenLM) -> None:
    lm.model.bfloat16()
    batch = collate(EXAMPLES, pad_id=lm.pad_id)
    logits = pyreft_logits(to_pyreft(adapter, lm, threshold=None), batch, 2)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, IntervenedLM(lm, adapter).logits(batch))


def test_generation_edits_the_prefill_only(adapter: Adapter, lm: FrozenLM) -> None:
    with torch.no_grad():
        for _, gated in adapter:
            gated.intervention.learned_source.bias.mul_(100)
    ours = IntervenedLM(lm, adapter).generate(PROMPTS, max_new_tokens=8).texts
    assert ours != IntervenedLM(lm).generate(PROMPTS, max_new_tokens=8).texts
    length = max(map(len, PROMPTS))
    input_ids = torch.tensor([(lm.pad_id,) * (length - len(prompt)) + prompt for prompt in PROMPTS])
    _, output = to_pyreft(adapter, lm, threshold=None).generate(
        {"input_ids": input_ids, "attention_mask": (input_ids != lm.pad_id).long()},
        unit_locations=last_prompt_locations(torch.full((len(PROMPTS),), length - 1), 2),
        intervene_on_prompt=True,
        max_new_tokens=8,
        do_sample=False,
    )
    texts = lm.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    assert tuple(texts) == ours


def test_training_inside_pyreft_trains_the_adapter(adapter: Adapter, lm: FrozenLM) -> None:
    batch = collate(EXAMPLES, pad_id=lm.pad_id)
    reft = to_pyreft(adapter, lm, threshold=None)
    assert isinstance(reft, pyreft.ReftModel)
    assert {id(p) for p in reft.get_trainable_parameters()} == {id(p) for p in adapter.parameters()}
    through_pyreft = pyreft_logits(reft, batch, 2)[batch.predicts]
    ours = IntervenedLM(lm, adapter).answers(batch, keep_logits=True).logits
    assert ours is not None
    parameters = tuple(adapter.parameters())
    expected = torch.autograd.grad(ours.square().sum(), parameters)
    assert all(gradient.any() for gradient in expected)
    torch.testing.assert_close(torch.autograd.grad(through_pyreft.square().sum(), parameters), expected)


@torch.no_grad()
def test_an_architecture_that_pyvene_does_not_know(tokenizer: PreTrainedTokenizerFast) -> None:
    config = Phi3Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=64, original_max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    lm = freeze(Phi3ForCausalLM(config), tokenizer, BaseInfo("tiny-phi3", None, "e" * 64))
    adapter = build_adapter(AdapterConfig(layers=(0, 2), rank=2, gate=LinearGateConfig()), hidden_size=16, num_layers=3, seed=0)
    batch = collate(EXAMPLES, pad_id=lm.pad_id)
    ours = IntervenedLM(lm, adapter).logits(batch)
    assert not torch.equal(ours, IntervenedLM(lm).logits(batch))
    assert torch.equal(pyreft_logits(to_pyreft(adapter, lm, threshold=None), batch, 2), ours)


def test_unit_locations_name_one_position_per_block_and_row() -> None:
    assert last_prompt_locations(torch.tensor([3, 1]), 3) == {"sources->base": (None, [[[3], [1]], [[3], [1]], [[3], [1]]])}


def test_an_adapter_for_another_base_is_refused(lm: FrozenLM) -> None:
    wide = build_adapter(AdapterConfig(layers=(1,), gate=LinearGateConfig()), hidden_size=48, num_layers=4, seed=0)
    with pytest.raises(AdapterError, match=r"hidden size .* got 48 for a base of 32"):
        to_pyreft(wide, lm, threshold=None)
    deep = build_adapter(AdapterConfig(layers=(1, 9), gate=LinearGateConfig()), hidden_size=32, num_layers=12, seed=0)
    with pytest.raises(AdapterError, match=r"lie in 0\.\.3, .* got \[1, 9\]"):
        to_pyreft(deep, lm, threshold=None)


@pytest.mark.parametrize("threshold", [None, 1.0])
@torch.no_grad()
def test_an_adapter_without_gates_is_plain_loreft(lm: FrozenLM, threshold: float | None) -> None:
    adapter = build_adapter(AdapterConfig(layers=(1, 3), rank=2, gate=NoGateConfig()), hidden_size=32, num_layers=4, seed=0)
    batch = collate(EXAMPLES, pad_id=lm.pad_id)
    ours = IntervenedLM(lm, adapter, threshold=threshold).logits(batch)
    assert not torch.equal(ours, IntervenedLM(lm).logits(batch))
    assert torch.equal(pyreft_logits(to_pyreft(adapter, lm, threshold=threshold), batch, 2), ours)
