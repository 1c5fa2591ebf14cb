"""Sequences that come and go in one batch say what they would have said alone."""

from typing import Any

import pytest
import torch
from torch import nn

from grun.config import AdapterConfig, LinearGateConfig
from grun.interventions import build_adapter
from grun.lm import FrozenLM, IntervenedLM
from grun.lm.decoding import check_decodable, prefill
from tests.lm.shapes import CONFIGS, DEPTH, WIDTH, shaped_lm

PROMPTS = ((5, 9, 11, 42, 7, 30, 8), (17, 3), (60, 2, 33, 14))
STEPS = 12


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    return shaped_lm(request.param)


def edited(lm: FrozenLM, seed: int) -> IntervenedLM:
    config = AdapterConfig(layers=(1, 2), rank=4, gate=LinearGateConfig())
    adapter = build_adapter(config, hidden_size=WIDTH, num_layers=DEPTH, seed=seed)
    for name, weights in adapter.named_parameters():
        if "learned_source" in name:
            nn.init.normal_(weights)  # an untrained edit would change no word
    return IntervenedLM(lm, adapter)


def alone(model: IntervenedLM, prompt: tuple[int, ...], steps: int = STEPS) -> list[int]:
    """Greedy tokens of one prompt, by full forward passes of the family's own `generate`."""
    input_ids, mask = model.padded([prompt])
    with model.edited_prefill(input_ids):
        generate: Any = model.lm.model.generate
        out = generate(input_ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, eos_token_id=None)
    assert isinstance(out, torch.Tensor)
    return [int(token) for token in out[0, len(prompt) :]]


def test_a_batch_says_what_each_prompt_gets_alone(lm: FrozenLM) -> None:
    model = edited(lm, 0)
    read = prefill(model, PROMPTS)
    tokens = read.logits.argmax(-1)
    said = [tokens]
    for _ in range(STEPS - 1):
        tokens = read.decoding.step(tokens).argmax(-1)
        said.append(tokens)
    assert torch.stack(said, -1).tolist() == [alone(model, prompt) for prompt in PROMPTS]
    assert read.gate_logits is not None
    assert read.gate_logits.shape == (3, 2)


def test_rows_that_come_and_go_under_different_adapters_say_what_they_would_alone(lm: FrozenLM) -> None:
    first, second = edited(lm, 0), edited(lm, 1)
    # the long row leaves first, so that its padding of the others is cut away; a shorter one then joins
    read = prefill(first, PROMPTS[:2])
    tokens = read.logits.argmax(-1)
    said: dict[str, list[int]] = {"long": [int(tokens[0])], "short": [int(tokens[1])], "late": []}
    decoding = read.decoding
    for _ in range(3):
        tokens = decoding.step(tokens).argmax(-1)
        said["long"].append(int(tokens[0]))
        said["short"].append(int(tokens[1]))
    decoding.keep([1])
    assert decoding.mask.shape[1] == len(PROMPTS[1]) + 3
    late = prefill(second, [PROMPTS[2]])
    decoding.join(late.decoding)
    tokens = torch.cat([tokens[1:], late.logits.argmax(-1)])
    said["late"].append(int(tokens[1]))
    for _ in range(STEPS - 4):
        tokens = decoding.step(tokens).argmax(-1)
        said["short"].append(int(tokens[0]))
        said["late"].append(int(tokens[1]))
    assert said["long"] == alone(first, PROMPTS[0], 4)
    assert said["short"] == alone(first, PROMPTS[1])
    assert said["late"] == alone(second, PROMPTS[2], STEPS - 3)
    assert alone(first, PROMPTS[2]) != alone(second, PROMPTS[2]), "the adapters must matter"


def test_every_supported_family_can_be_decoded_in_rows(lm: FrozenLM) -> None:
    check_decodable(lm)
