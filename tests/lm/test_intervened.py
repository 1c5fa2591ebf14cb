"""What an intervened model computes, beyond what every architecture shares (test_architectures.py)."""

import pytest
import torch
from torch import Tensor, nn

from grun.config import AdapterConfig, LinearGateConfig
from grun.data.batches import TokenBatch, collate
from grun.data.prompts import Example
from grun.interventions import Adapter, build_adapter
from grun.lm import BaseInfo, FrozenLM, IntervenedLM, freeze
from grun.lm.hooks import edit_outputs, narrow_input

LAYERS = (1, 3)
EXAMPLES = (Example("a", (40, 41, 42, 43, 44, 45, 46, 1), 5), Example("b", (50, 51, 52, 1), 2))


@pytest.fixture
def adapter() -> Adapter:
    return build_adapter(AdapterConfig(layers=LAYERS, rank=2, gate=LinearGateConfig()), hidden_size=32, num_layers=4, seed=0)


@pytest.fixture
def batch(tiny_lm: FrozenLM) -> TokenBatch:
    return collate(EXAMPLES, pad_id=tiny_lm.pad_id)


def num_hooks(lm: FrozenLM) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


@torch.no_grad()
def test_edit_is_the_gate_value_times_the_loreft_edit(tiny_lm: FrozenLM, adapter: Adapter, batch: TokenBatch) -> None:
    at = (torch.arange(2), batch.last_prompt)
    reference, edited = (
        IntervenedLM(tiny_lm, with_adapter).answers(batch, read_layer=LAYERS[0]) for with_adapter in (None, adapter)
    )
    assert reference.hidden is not None
    assert edited.hidden is not None
    first = torch.tensor([0, 3])  # of the answer tokens: each row's first is predicted by its last prompt token
    h = reference.hidden[first]
    intervention = adapter.at(LAYERS[0])
    u = intervention.gate.logits(h)
    loreft = intervention.intervention
    basis, source = loreft.basis, loreft.learned_source
    expected = h + u.sigmoid()[:, None] * (h @ source.weight.T + source.bias - h @ basis) @ basis.T
    torch.testing.assert_close(edited.hidden[first], expected)
    rest = torch.tensor([1, 2, 4])
    assert torch.equal(edited.hidden[rest], reference.hidden[rest])
    assert edited.gate_logits is not None
    torch.testing.assert_close(edited.gate_logits[:, 0], u)
    assert batch.predicts[at].all()


@torch.no_grad()
def test_later_gates_read_what_earlier_edits_left(tiny_lm: FrozenLM, adapter: Adapter, batch: TokenBatch) -> None:
    both = IntervenedLM(tiny_lm, adapter).answers(batch).gate_logits
    alone = IntervenedLM(tiny_lm, Adapter({3: adapter.at(3)})).answers(batch).gate_logits
    assert both is not None
    assert alone is not None
    assert both.shape == (2, len(LAYERS))
    assert not torch.allclose(both[:, 1], alone[:, 0])


@torch.no_grad()
def test_each_row_has_its_own_gate(tiny_lm: FrozenLM, batch: TokenBatch) -> None:
    one_layer = Adapter(
        {1: build_adapter(AdapterConfig(layers=(1,), gate=LinearGateConfig()), hidden_size=32, num_layers=4, seed=0).at(1)}
    )
    gate_logits = IntervenedLM(tiny_lm, one_layer).answers(batch).gate_logits
    assert gate_logits is not None
    values = gate_logits.sigmoid()[:, 0]
    between = values.mean().item()
    base, cut = IntervenedLM(tiny_lm).logits(batch), IntervenedLM(tiny_lm, one_layer, threshold=between).logits(batch)
    unchanged = (base == cut).flatten(1).all(-1)
    assert unchanged.tolist() == (values < between).tolist()
    assert unchanged.sum() == 1


@torch.no_grad()
def test_closed_gates_are_the_identity_in_bfloat16(tiny_lm: FrozenLM, adapter: Adapter, batch: TokenBatch) -> None:
    half = freeze(type(tiny_lm.model)(tiny_lm.model.config), tiny_lm.tokenizer, BaseInfo("half", None, ""))
    half.model.to(torch.bfloat16)  # type: ignore[arg-type]
    base = IntervenedLM(half).logits(batch)
    assert base.dtype == torch.bfloat16
    assert torch.equal(IntervenedLM(half, adapter, threshold=1.01).logits(batch), base)
    assert not torch.equal(IntervenedLM(half, adapter).logits(batch), base)


def test_scores_carry_gradients_to_the_whole_adapter_and_to_nothing_else(
    tiny_lm: FrozenLM, adapter: Adapter, batch: TokenBatch
) -> None:
    IntervenedLM(tiny_lm, adapter).answers(batch).nll.sum().backward()
    without = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad is None and not p.requires_grad for p in tiny_lm.model.parameters())


def test_reference_has_no_gates(tiny_lm: FrozenLM, batch: TokenBatch) -> None:
    model = IntervenedLM(tiny_lm)
    answers = model.answers(batch)
    assert answers.gate_logits is None
    assert answers.logits is None
    assert answers.hidden is None
    assert model.generate([(40, 41)], max_new_tokens=1).gate_logits is None


def test_half_precision_scores_are_float32(tiny_lm: FrozenLM, batch: TokenBatch) -> None:
    half = freeze(type(tiny_lm.model)(tiny_lm.model.config), tiny_lm.tokenizer, BaseInfo("half", None, ""))
    half.model.to(torch.bfloat16)  # type: ignore[arg-type]
    assert IntervenedLM(half).answers(batch).nll.dtype == torch.float32


@torch.no_grad()
def test_read_layer_sees_the_edit_of_its_own_block(tiny_lm: FrozenLM, adapter: Adapter, batch: TokenBatch) -> None:
    """The last block's output, normalised and projected, is the logits: so what is read is what goes on."""
    answers = IntervenedLM(tiny_lm, adapter).answers(batch, keep_logits=True, read_layer=LAYERS[-1])
    assert answers.hidden is not None
    assert answers.logits is not None
    norm = tiny_lm.model.get_submodule("model.norm")
    torch.testing.assert_close(tiny_lm.head(norm(answers.hidden)), answers.logits)


def test_hooks_come_off_after_an_exception(
    tiny_lm: FrozenLM, adapter: Adapter, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = IntervenedLM(tiny_lm, adapter)
    before = IntervenedLM(tiny_lm).logits(batch)

    def fail(*_args: object, **_kwargs: object) -> Tensor:
        assert num_hooks(tiny_lm) > 0
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(type(adapter.at(3)), "forward", fail)
        for call in (
            lambda: model.answers(batch, read_layer=3),
            lambda: model.logits(batch),
            lambda: model.generate([(40, 41)], max_new_tokens=2),
        ):
            with pytest.raises(ZeroDivisionError):
                call()
            assert num_hooks(tiny_lm) == 0
    assert torch.equal(IntervenedLM(tiny_lm).logits(batch), before)


def test_hooks_come_off_after_every_call(tiny_lm: FrozenLM, adapter: Adapter, batch: TokenBatch) -> None:
    model = IntervenedLM(tiny_lm, adapter)
    model.answers(batch, read_layer=2)
    model.generate([(40, 41)], max_new_tokens=2)
    assert num_hooks(tiny_lm) == 0


def test_generation_ends_at_the_end_of_text(tiny_lm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    end, passes = tiny_lm.tokenizer.eos_token_id, []

    def only_end(_module: nn.Module, _args: object, logits: Tensor) -> Tensor:
        passes.append(1)
        return torch.zeros_like(logits).index_fill(-1, torch.tensor(end), 1.0)

    handle = tiny_lm.head.register_forward_hook(only_end)
    try:
        generated = IntervenedLM(tiny_lm).generate([(40, 41), (50,)], max_new_tokens=9)
    finally:
        handle.remove()
    assert generated.texts == ("", "")
    assert len(passes) == 1


def test_generation_is_the_same_alone_and_in_any_company(tiny_lm: FrozenLM, adapter: Adapter) -> None:
    prompts = [(40, 41, 42, 43, 44, 45), (50,), (60, 61, 62)]
    model = IntervenedLM(tiny_lm, adapter, threshold=0.5)
    together = model.generate(prompts, max_new_tokens=5)
    assert together.texts == tuple(model.generate([prompt], max_new_tokens=5).texts[0] for prompt in prompts)
    assert together.gate_logits is not None
    scored = model.answers(collate([Example("", (*prompt, 1), len(prompt)) for prompt in prompts], pad_id=0)).gate_logits
    torch.testing.assert_close(together.gate_logits, scored)


class TupleBlock(nn.Module):
    """A block as older models have it: hidden states first, something else after."""

    def forward(self, h: Tensor) -> tuple[Tensor, str]:
        return h + 1, "attention weights"


def test_edit_outputs_keeps_the_rest_of_a_tuple() -> None:
    block, plain = TupleBlock(), nn.Identity()
    h = torch.zeros(1, 2, 3)
    with edit_outputs({block: lambda h: h * 10, plain: lambda h: h - 5}):
        hidden, rest = block(h)
        assert torch.equal(plain(h), torch.full_like(h, -5))
    assert torch.equal(hidden, torch.full_like(h, 10))
    assert rest == "attention weights"
    assert torch.equal(block(h)[0], torch.ones_like(h))


def test_narrow_input_selects_row_after_row() -> None:
    head = nn.Identity()
    h = torch.arange(6.0).view(2, 3, 1)
    predicts = torch.tensor([[False, True, True], [True, False, False]])
    with narrow_input(head, predicts):
        assert head(h).flatten().tolist() == [1, 2, 3]
    assert torch.equal(head(h), h)
