"""Official checkpoints: written here in their format, run here by a plain implementation of their formula."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grun.adapters import load_adapter, save_adapter
from grun.adapters.official import import_official
from grun.data.batches import TokenBatch, collate
from grun.data.prompts import Example
from grun.errors import AdapterError
from grun.lm import FrozenLM, IntervenedLM

HIDDEN_SIZE, RANK, LAYERS = 32, 3, (1, 3)
GATE_WIDTHS = {"linear": (32, 1), "mlp_3": (32, 256, 64, 1), "mlp_5": (32, 1024, 512, 256, 64, 1)}
EXAMPLES = [Example("", (5, 9, 13, 22, 50, 1), 4), Example("", (7, 3, 51, 52, 1), 2), Example("", (*range(20, 27), 53, 1), 7)]

State = dict[str, Any]


def file_of(folder: Path, layer: int) -> Path:
    return folder / f"intkey_layer.{layer}.comp.block_output.unit.pos.nunit.1#0.bin"


def draw_state(gate: str, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).div(shape[-1] ** 0.5).bfloat16()

    widths = GATE_WIDTHS[gate]
    state: State = {"weight": draw(RANK, HIDDEN_SIZE), "bias": draw(RANK)}
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        prefix = "gate_func" if gate == "linear" else f"gate_func.{2 * index}"
        state |= {f"{prefix}.weight": draw(fan_out, fan_in), f"{prefix}.bias": draw(fan_out)}
    return state | {"rotate_layer": torch.linalg.qr(draw(HIDDEN_SIZE, RANK).float())[0]}


def write_config(folder: Path, layers: tuple[int, ...] = LAYERS) -> None:
    values = {
        "intervention_constant_sources": [True] * len(layers),
        "intervention_dimensions": [HIDDEN_SIZE] * len(layers),
        "intervention_types": ["<class 'pyreft.interventions.GatedLoreftIntervention'>"] * len(layers),
        "mode": "parallel",
        "representations": [[layer, "block_output", "pos", 1, RANK, *[None] * 8] for layer in layers],
        "sorted_keys": [f"layer.{layer}.comp.block_output.unit.pos.nunit.1#0" for layer in layers],
        "transformers_version": "4.45.2",
    }
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


def write_checkpoint(folder: Path, gate: str = "linear") -> dict[int, State]:
    folder.mkdir(exist_ok=True)
    states = {layer: draw_state(gate, seed=layer) for layer in LAYERS}
    for layer, state in states.items():
        torch.save(state, file_of(folder, layer))
    write_config(folder)
    return states


def edit_plainly(h: Tensor, state: State) -> Tensor:
    """h + sigmoid(gate(h)) (W h + b - h R) R^T, written out."""
    state = {name: value.float() for name, value in state.items()}
    weights = [name for name in state if name.startswith("gate_func") and name.endswith("weight")]
    u = h
    for index, name in enumerate(weights):
        u = F.linear(u if index == 0 else u.relu(), state[name], state[name.replace("weight", "bias")])
    inside = h @ state["weight"].T + state["bias"] - h @ state["rotate_layer"]
    edited: Tensor = h + torch.sigmoid(u) * (inside @ state["rotate_layer"].T)
    return edited


def plain_logits(lm: FrozenLM, batch: TokenBatch, states: dict[int, State]) -> Tensor:
    def hook_for(state: State) -> Callable[[Any, Any, Tensor], Tensor]:
        def hook(_module: Any, _args: Any, h: Tensor) -> Tensor:
            h = h.clone()
            for row, position in enumerate(batch.last_prompt.tolist()):
                h[row, position] = edit_plainly(h[row, position], state)
            return h

        return hook

    handles = [lm.blocks[layer].register_forward_hook(hook_for(state)) for layer, state in states.items()]
    logits: Tensor = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("gate", GATE_WIDTHS)
@torch.no_grad()
def test_outputs_equal_the_official_formula(tmp_path: Path, lm: FrozenLM, gate: str) -> None:
    states = write_checkpoint(tmp_path, gate)
    adapter, card = import_official(tmp_path, lm)
    batch = collate(EXAMPLES, pad_id=lm.pad_id)
    expected = plain_logits(lm, batch, states)
    real = batch.attention_mask.bool()
    assert (expected - IntervenedLM(lm).logits(batch))[real].abs().max() > 0.1
    torch.testing.assert_close(IntervenedLM(lm, adapter).logits(batch)[real], expected[real], rtol=0, atol=1e-5)
    assert card.adapter.gate.kind == gate


def test_tensors_are_taken_over_in_float32(tmp_path: Path, lm: FrozenLM) -> None:
    states = write_checkpoint(tmp_path, "mlp_3")
    adapter, _ = import_official(tmp_path, lm)
    assert adapter.layers == LAYERS
    for layer, gated in adapter:
        assert torch.equal(gated.intervention.learned_source.weight, states[layer]["weight"].float())
        torch.testing.assert_close(gated.intervention.basis, states[layer]["rotate_layer"], rtol=0, atol=1e-6)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    assert not adapter.training


def test_imported_adapter_is_saved_and_loaded_as_any_other(tmp_path: Path, lm: FrozenLM) -> None:
    write_checkpoint(tmp_path / "official")
    adapter, card = import_official(tmp_path / "official", lm)
    assert (card.adapter.layers, card.adapter.rank, card.adapter.gate_threshold) == (LAYERS, RANK, None)
    assert card.base == lm.info
    loaded, loaded_card = load_adapter(save_adapter(adapter, card, tmp_path / "adapter"), lm)
    assert loaded_card.adapter == card.adapter
    for name, value in adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_basis_stays_orthonormal_when_training_goes_on(tmp_path: Path, lm: FrozenLM) -> None:
    write_checkpoint(tmp_path)
    adapter, _ = import_official(tmp_path, lm)
    intervention = adapter.at(1).intervention
    before = intervention.basis.detach().clone()
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    h = torch.randn(16, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        optimizer.zero_grad()
        torch.autograd.backward(adapter.at(1)(h).hidden.square().mean())
        optimizer.step()
    after = intervention.basis.detach()
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after.T @ after, torch.eye(RANK), rtol=0, atol=1e-5)


def test_import_leaves_the_global_generator_alone(tmp_path: Path, lm: FrozenLM) -> None:
    write_checkpoint(tmp_path, "mlp_5")
    before = torch.get_rng_state()
    import_official(tmp_path, lm)
    assert torch.equal(torch.get_rng_state(), before)


def test_trainer_folders_are_accepted(tmp_path: Path, lm: FrozenLM) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "checkpoint-50").mkdir()
    torch.save({}, tmp_path / "pytorch_model.bin")
    import_official(tmp_path, lm)
    torch.save({"lm_head.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(AdapterError, match=r"got 1 trained base tensors \(lm_head.weight"):
        import_official(tmp_path, lm)


class Attack:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.target, "executed")


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, lm: FrozenLM) -> None:
    states = write_checkpoint(tmp_path / "official")
    marker = tmp_path / "marker"
    torch.save(states[1] | {"extra": Attack(marker)}, file_of(tmp_path / "official", 1))
    with pytest.raises(AdapterError, match=r"layer\.1\..* was refused \(UnpicklingError\)"):
        import_official(tmp_path / "official", lm)
    assert not marker.exists()
    torch.load(file_of(tmp_path / "official", 1), weights_only=False)
    assert marker.read_text() == "executed"  # the attack is a real one


@pytest.mark.parametrize("size", [0, 1, 100, 2000])
def test_a_truncated_file_is_refused(tmp_path: Path, lm: FrozenLM, size: int) -> None:
    write_checkpoint(tmp_path)
    path = file_of(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(AdapterError, match=r"layer\.3\..*, which was refused"):
        import_official(tmp_path, lm)


def without(name: str) -> Callable[[State], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_(**tensors: Any) -> Callable[[State], Any]:
    return lambda state: state | tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("weight"), r"got `weight` of shape None instead of \(3, 32\)"),
        (without("bias"), r"got `bias` of shape None"),
        (without("rotate_layer"), r"must have a `rotate_layer` of shape \(32, rank\).* got None"),
        (without("gate_func.bias"), r"gate of kind \['linear', 'mlp_3', 'mlp_5'\], got the gate tensors \['gate_func.weight'\]"),
        (with_(momentum=torch.zeros(3)), r"got `momentum` of shape \(3,\) instead of None"),
        (with_(weight=torch.zeros(RANK, 48)), r"got `weight` of shape \(3, 48\) instead of \(3, 32\)"),
        (with_(rotate_layer=torch.eye(48)[:, :RANK]), r"rank\), by the hidden size of this base, got \(48, 3\)"),
        (with_(rotate_layer=torch.zeros(32)), r"got \(32,\)"),
        (with_(rotate_layer=torch.zeros(32, 0)), r"got \(32, 0\)"),
        (with_(rotate_layer=torch.ones(32, 3)), r"orthonormal columns to 0.0001, got a deviation of 32"),
        (with_(bias=torch.tensor([0.0, float("nan"), 0.0])), r"finite floating-point tensors, got another `bias`"),
        (with_(bias=torch.tensor([0, 1, 2])), r"finite floating-point tensors, got another `bias`"),
        (with_(bias=[0.0, 0.0, 0.0]), r"finite floating-point tensors, got another `bias`"),
        (with_(bias=torch.zeros(3).to_sparse()), r"finite floating-point tensors, got another `bias`"),
        (lambda state: list(state.values()), r"dictionary of tensors, got list"),
        (lambda _: draw_state("mlp_3", 0), r"same gate and rank, got \{1: \('mlp_3', 3\), 3: \('linear', 3\)\}"),
        (
            with_(weight=torch.zeros(2, 32), bias=torch.zeros(2), rotate_layer=torch.eye(32)[:, :2]),
            r"same gate and rank, got \{1: \('linear', 2\), 3: \('linear', 3\)\}",
        ),
    ],
)
def test_a_wrong_layer_file_is_refused(tmp_path: Path, lm: FrozenLM, change: Callable[[State], Any], message: str) -> None:
    states = write_checkpoint(tmp_path)
    torch.save(change(states[1]), file_of(tmp_path, 1))
    with pytest.raises(AdapterError, match=message):
        import_official(tmp_path, lm)


def test_a_mixed_up_multilayer_gate_is_refused(tmp_path: Path, lm: FrozenLM) -> None:
    states = write_checkpoint(tmp_path, "mlp_3")
    torch.save(states[3] | {"gate_func.2.weight": torch.zeros(256, 64)}, file_of(tmp_path, 3))
    with pytest.raises(AdapterError, match=r"got `gate_func.2.weight` of shape \(256, 64\) instead of \(64, 256\)"):
        import_official(tmp_path, lm)


def test_a_wrong_folder_is_refused(tmp_path: Path, lm: FrozenLM) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(AdapterError, match=r"one `intkey_layer\.\*\.bin` per edited block, got none"):
            import_official(folder, lm)
    write_checkpoint(tmp_path)
    file_of(tmp_path, 3).rename(tmp_path / "intkey_layer.3.comp.mlp_output.unit.pos.nunit.1#0.bin")
    with pytest.raises(AdapterError, match=r"one position of block outputs, got .*mlp_output"):
        import_official(tmp_path, lm)


def test_a_layer_outside_the_base_is_refused(tmp_path: Path, lm: FrozenLM) -> None:
    write_checkpoint(tmp_path)
    file_of(tmp_path, 3).rename(file_of(tmp_path, 4))
    write_config(tmp_path, (1, 4))
    with pytest.raises(AdapterError, match=r"lie in 0\.\.3, the blocks of this base, got \[4\]"):
        import_official(tmp_path, lm)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        '{"representations": 3}',
        '{"representations": [3]}',
        '{"representations": [[[]], [1]]}',
        "[" * 100_000,
    ],
    ids=lambda content: str(content)[:20],
)
def test_a_damaged_config_is_refused(tmp_path: Path, lm: FrozenLM, content: str | None) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(AdapterError, match=r"config\.json (that lists|must place)"):
        import_official(tmp_path, lm)


def test_config_and_files_must_name_the_same_layers(tmp_path: Path, lm: FrozenLM) -> None:
    write_checkpoint(tmp_path)
    write_config(tmp_path, (1, 2, 3))
    with pytest.raises(AdapterError, match=r"config\.json must place .*, got .*\(2, 'block_output', 'pos', 1\)"):
        import_official(tmp_path, lm)
