"""Every supported shape of decoder: what an intervention must and must not touch."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from grun.config import AdapterConfig, LinearGateConfig
from grun.data.batches import TokenBatch, collate
from grun.data.prompts import Example
from grun.gates import LinearGate
from grun.interventions import Adapter, build_adapter
from grun.lm import FrozenLM, IntervenedLM
from tests.lm.shapes import CONFIGS, DEPTH, SOFT_CAP, VOCAB, WIDTH, WINDOW, shaped_lm

Side = Literal["left", "right"]

EDITED = (1, 2)
ABOVE_ANY_GATE = 1.01

EXAMPLES = (
    Example("a", (5, 9, 11, 42, 7, 30, 8, 21, 50, 1), 7),
    Example("b", (17, 3, 29, 1), 2),
    Example("c", (60, 2, 33, 14, 25, 19, 1), 4),
)
PROMPTS = tuple(example.prompt_ids for example in EXAMPLES)


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    return shaped_lm(request.param)


@pytest.fixture
def adapter() -> Adapter:
    return build_adapter(
        AdapterConfig(layers=EDITED, rank=4, gate=LinearGateConfig()), hidden_size=WIDTH, num_layers=DEPTH, seed=0
    )


def shut(adapter: Adapter) -> None:
    """Close the gates by their bias: the sigmoid of -10,000 is exactly 0."""
    for _, intervention in adapter:
        assert isinstance(intervention.gate, LinearGate)
        nn.init.constant_(intervention.gate.linear.bias, -1e4)


def block_input(lm: FrozenLM, layer: int, model: IntervenedLM, batch: TokenBatch) -> Tensor:
    """What block `layer` is given (B, T, D)."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = lm.blocks[layer].register_forward_pre_hook(keep, with_kwargs=True)
    model.logits(batch)
    handle.remove()
    return seen[0]


def test_blocks_are_the_decoder_layers_in_order(lm: FrozenLM) -> None:
    called: list[int] = []
    with ExitStack() as stack:
        for index, block in enumerate(lm.blocks):
            handle = block.register_forward_hook(lambda *_args, index=index: called.append(index))
            stack.callback(handle.remove)
        IntervenedLM(lm).logits(collate(EXAMPLES, pad_id=0))
    assert called == list(range(DEPTH))


@pytest.mark.parametrize("side", ["left", "right"])
def test_closed_gates_are_the_identity_bit_for_bit(lm: FrozenLM, adapter: Adapter, side: Side) -> None:
    batch = collate(EXAMPLES, pad_id=0, side=side)
    base, cut_off, soft = IntervenedLM(lm), IntervenedLM(lm, adapter, threshold=ABOVE_ANY_GATE), IntervenedLM(lm, adapter)
    assert not torch.equal(soft.logits(batch), base.logits(batch)), "with open gates the edit must matter"
    assert torch.equal(cut_off.logits(batch), base.logits(batch))
    assert torch.equal(cut_off.answers(batch).nll, base.answers(batch).nll)
    shut(adapter)
    assert torch.equal(soft.logits(batch), base.logits(batch))
    assert soft.generate(PROMPTS, max_new_tokens=6).texts == base.generate(PROMPTS, max_new_tokens=6).texts


def test_batch_equals_single(lm: FrozenLM, adapter: Adapter) -> None:
    model = IntervenedLM(lm, adapter)
    together = model.answers(collate(EXAMPLES, pad_id=0))
    alone = [model.answers(collate([example], pad_id=0)) for example in EXAMPLES]
    torch.testing.assert_close(together.nll, torch.cat([each.nll for each in alone]), rtol=1e-4, atol=1e-4)
    assert together.gate_logits is not None
    torch.testing.assert_close(
        together.gate_logits, torch.cat([each.gate_logits for each in alone if each.gate_logits is not None])
    )


def test_left_padding_equals_right_padding(lm: FrozenLM, adapter: Adapter) -> None:
    model = IntervenedLM(lm, adapter)
    left, right = collate(EXAMPLES, pad_id=0, side="left"), collate(EXAMPLES, pad_id=0, side="right")
    torch.testing.assert_close(model.answers(left).nll, model.answers(right).nll, rtol=1e-4, atol=1e-4)
    at_tokens = [model.logits(batch)[batch.attention_mask.bool()] for batch in (left, right)]
    torch.testing.assert_close(at_tokens[0], at_tokens[1], rtol=1e-4, atol=1e-4)


def test_edit_reaches_only_the_last_prompt_token_and_what_follows(lm: FrozenLM, adapter: Adapter) -> None:
    batch = collate(EXAMPLES, pad_id=0)
    base, edited = IntervenedLM(lm), IntervenedLM(lm, adapter)
    position = torch.arange(batch.input_ids.shape[1])
    before = position < batch.last_prompt[:, None]
    at = position == batch.last_prompt[:, None]
    # after the first edited block nothing else has changed; the last prompt token carries it into the later blocks
    first = [block_input(lm, EDITED[0] + 1, model, batch) for model in (base, edited)]
    assert torch.equal((first[0] != first[1]).any(-1), at)
    logits = [model.logits(batch) for model in (base, edited)]
    assert torch.equal(logits[0][before], logits[1][before])
    following = batch.attention_mask.bool() & ~before
    assert (logits[0] != logits[1]).any(-1)[following].all()


def test_generation_edits_the_prefill_and_leaves_decoding_steps_alone(lm: FrozenLM, adapter: Adapter) -> None:
    edits = dict.fromkeys(EDITED, 0)
    passes: list[int] = []

    def count(layer: int) -> None:
        edits[layer] += 1

    with ExitStack() as stack:
        for layer, intervention in adapter:
            stack.callback(intervention.register_forward_hook(lambda *_args, layer=layer: count(layer)).remove)
        stack.callback(lm.blocks[0].register_forward_hook(lambda *_args: passes.append(1)).remove)
        generated = IntervenedLM(lm, adapter).generate(PROMPTS, max_new_tokens=6)
    assert len(passes) > 1
    assert edits == dict.fromkeys(EDITED, 1)
    assert generated.texts == tuple(decode_by_hand(lm, adapter, prompt, max_new_tokens=6) for prompt in PROMPTS)
    assert generated.texts != IntervenedLM(lm).generate(PROMPTS, max_new_tokens=6).texts


@torch.no_grad()
def decode_by_hand(lm: FrozenLM, adapter: Adapter, prompt: tuple[int, ...], *, max_new_tokens: int) -> str:
    """One prompt, no padding: edit the prefill's last position, then decode greedily from the cache without any hook."""

    def edit_last(layer: int) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[:, -1] = adapter.at(layer)(hidden[:, -1]).hidden
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    with ExitStack() as stack:
        for layer in EDITED:
            stack.callback(lm.blocks[layer].register_forward_hook(edit_last(layer)).remove)
        output = lm.model(torch.tensor([prompt]), use_cache=True)
    tokens: list[int] = []
    while True:
        tokens.append(int(output.logits[0, -1].argmax()))
        if tokens[-1] == lm.tokenizer.eos_token_id or len(tokens) == max_new_tokens:
            return str(lm.tokenizer.decode(tokens, skip_special_tokens=True))
        output = lm.model(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True)


def test_narrowed_head_equals_the_full_logits(lm: FrozenLM, adapter: Adapter) -> None:
    batch = collate(EXAMPLES, pad_id=0)
    model = IntervenedLM(lm, adapter)
    narrowed, full = model.answers(batch, keep_logits=True), model.logits(batch)
    assert narrowed.logits is not None
    assert full.shape == (len(EXAMPLES), 10, VOCAB)
    torch.testing.assert_close(narrowed.logits, full[batch.predicts], rtol=1e-5, atol=1e-5)


def test_scores_are_the_cross_entropy_of_each_answer_token(lm: FrozenLM, adapter: Adapter) -> None:
    batch = collate(EXAMPLES, pad_id=0)
    model = IntervenedLM(lm, adapter)
    scores, logits = model.answers(batch), model.logits(batch).double()
    expected = [
        (logits[row, position - 1].exp().sum().log() - logits[row, position - 1, example.ids[position]]).item()
        for row, example in enumerate(EXAMPLES)
        for position in range(example.num_prompt_tokens, len(example.ids))
    ]
    assert scores.nll.tolist() == pytest.approx(expected, abs=1e-4)
    assert scores.row.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert scores.num_rows == 3


def test_windows_and_soft_caps_are_in_force(lm: FrozenLM) -> None:
    """What the configurations switch on acts; otherwise the tests above would prove less than they seem to."""
    name = lm.info.name
    whole, changed = (collate([Example("", (first, *EXAMPLES[0].ids[1:]), 7)], pad_id=0) for first in (5, 6))
    after_one_block = [block_input(lm, 1, IntervenedLM(lm), batch)[0, WINDOW:] for batch in (whole, changed)]
    assert torch.equal(*after_one_block) == (name in ("mistral", "qwen2", "gemma2", "gemma3_text", "phi3"))
    assert (IntervenedLM(lm).logits(whole).abs().max() < SOFT_CAP).item() == (name == "gemma2")
