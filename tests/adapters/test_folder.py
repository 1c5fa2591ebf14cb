"""Adapters on disk: nothing lost, nothing more than two files, nothing loaded that is not whole."""

import copy
import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from grun.adapters import AdapterCard, digest_adapter, load_adapter, read_card, save_adapter
from grun.config import AdapterConfig, GateConfig, LinearGateConfig, Mlp3GateConfig, Mlp5GateConfig, NoGateConfig
from grun.data.batches import TokenBatch, collate
from grun.data.prompts import Example
from grun.errors import AdapterError, DiskError
from grun.interventions import Adapter, build_adapter
from grun.lm import BaseInfo, FrozenLM, IntervenedLM

CONFIG, TENSORS = "adapter_config.json", "adapter.safetensors"
EXAMPLES = [Example("", (5, 9, 13, 22, 50, 1), 4), Example("", (7, 3, 51, 52, 1), 2)]


@pytest.fixture
def batch() -> TokenBatch:
    return collate(EXAMPLES, pad_id=0)


@pytest.fixture
def card(lm: FrozenLM) -> AdapterCard:
    return card_for(AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig()), lm)


def card_for(config: AdapterConfig, lm: FrozenLM) -> AdapterCard:
    return AdapterCard(
        adapter=config,
        hidden_size=lm.hidden_size,
        num_layers=lm.num_layers,
        base_name=lm.info.name,
        base_digest=lm.info.digest,
        request_ids=("request-7",),
        data_digests={"forget": "f" * 64},
        steps=12,
    )


def optimizer_for(adapter: Adapter) -> torch.optim.Optimizer:
    return torch.optim.AdamW(adapter.parameter_groups(weight_decay=0.1), lr=0.05)


def train(adapter: Adapter, lm: FrozenLM, batch: TokenBatch, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(IntervenedLM(lm, adapter).answers(batch).nll.mean())
        optimizer.step()


def assert_orthonormal(adapter: Adapter) -> None:
    for _, gated in adapter:
        basis = gated.intervention.basis
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "gate", [LinearGateConfig(), Mlp3GateConfig(), Mlp5GateConfig(), NoGateConfig()], ids=lambda gate: gate.kind
)
def test_round_trip_is_bit_identical(tmp_path: Path, lm: FrozenLM, batch: TokenBatch, gate: GateConfig) -> None:
    config = AdapterConfig(layers=(0, 1, 3), rank=3, gate=gate, gate_threshold=0.25)
    adapter = build_adapter(config, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=1)
    train(adapter, lm, batch, optimizer_for(adapter), 2)
    folder = save_adapter(adapter, card_for(config, lm), tmp_path / "deep" / "adapter")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adapter", TENSORS, CONFIG, "deep"]
    loaded, card = load_adapter(folder, lm)
    assert card == card_for(config, lm).model_copy(update={"tensors_sha256": card.tensors_sha256})
    assert not loaded.training
    before, after = adapter.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for layer, gated in adapter:
        assert torch.equal(gated.intervention.basis, loaded.at(layer).intervention.basis)
    for threshold in (None, 0.25):
        logits = IntervenedLM(lm, adapter, threshold=threshold).logits(batch)
        assert torch.equal(IntervenedLM(lm, loaded, threshold=threshold).logits(batch), logits)


def test_training_goes_on_as_if_it_had_never_been_saved(
    tmp_path: Path, lm: FrozenLM, adapter: Adapter, card: AdapterCard, batch: TokenBatch
) -> None:
    optimizer = optimizer_for(adapter)
    train(adapter, lm, batch, optimizer, 5)
    assert_orthonormal(adapter)
    loaded, _ = load_adapter(save_adapter(adapter, card, tmp_path / "adapter"), lm)
    resumed = optimizer_for(loaded)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # it would share its tensors
    before = loaded.at(1).intervention.basis.detach().clone()
    train(adapter, lm, batch, optimizer, 5)
    train(loaded, lm, batch, resumed, 5)
    assert (loaded.at(1).intervention.basis - before).abs().max() > 1e-2
    assert_orthonormal(loaded)
    for ours, theirs in zip(adapter.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_older_adapter_is_replaced(tmp_path: Path, lm: FrozenLM, adapter: Adapter, card: AdapterCard) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    first = digest_adapter(folder)
    assert digest_adapter(save_adapter(adapter, card, folder)) == first
    with torch.no_grad():
        adapter.at(1).intervention.learned_source.bias.add_(1)
    assert digest_adapter(save_adapter(adapter, card, folder)) != first
    assert torch.equal(
        load_adapter(folder, lm)[0].at(1).intervention.learned_source.bias, adapter.at(1).intervention.learned_source.bias
    )
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_save_leaves_nothing_and_spares_the_older_adapter(
    tmp_path: Path, adapter: Adapter, card: AdapterCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    first = digest_adapter(folder)

    def disk_full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", disk_full)
        for target in (folder, tmp_path / "new"):
            with pytest.raises(
                DiskError, match=r"which has no room left \(No space left on device; .* MB are free\); free space there"
            ):
                save_adapter(adapter, card, target)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert digest_adapter(folder) == first


def test_an_unwritable_place_is_refused(tmp_path: Path, adapter: Adapter, card: AdapterCard) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(AdapterError, match=r"must be writable, got .*file/adapter"):
        save_adapter(adapter, card, tmp_path / "file" / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_base_is_refused(tmp_path: Path, lm: FrozenLM, adapter: Adapter, card: AdapterCard) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    other = replace(lm, info=BaseInfo("other", None, "e" * 64))
    with pytest.raises(
        AdapterError, match=r"only on the base it was trained on, got one for 'tiny' .* and the base 'other'.*model\.path"
    ):
        load_adapter(folder, other)
    load_adapter(folder, replace(lm, info=replace(lm.info, name="a copy elsewhere")))


def test_exactly_two_files(tmp_path: Path, adapter: Adapter, card: AdapterCard) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    rule = r"exactly `adapter_config\.json` and `adapter\.safetensors`, got .* with "
    with pytest.raises(AdapterError, match=rule + r"\[\]; check the path"):
        read_card(tmp_path / "missing")
    (folder / "adapter.bin").touch()
    with pytest.raises(AdapterError, match=rule + r"\['adapter\.bin', "):
        read_card(folder)
    (folder / "adapter.bin").unlink()
    (folder / CONFIG).unlink()
    with pytest.raises(AdapterError, match=rule + r"\['adapter\.safetensors'\]"):
        read_card(folder)
    save_adapter(adapter, card, folder)
    (folder / TENSORS).unlink()
    with pytest.raises(AdapterError, match=rule + r"\['adapter_config\.json'\]"):
        read_card(folder)


@pytest.mark.parametrize("position", [0, 8, 200, -1])
def test_a_damaged_byte_is_noticed(tmp_path: Path, lm: FrozenLM, adapter: Adapter, card: AdapterCard, position: int) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    content = bytearray((folder / TENSORS).read_bytes())
    content[position] ^= 1
    (folder / TENSORS).write_bytes(content)
    with pytest.raises(AdapterError, match=r"must be as it was written, got other bytes .*fetch the adapter again"):
        load_adapter(folder, lm)


def edit_card(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / CONFIG).read_text())
    values.pop("sha256")  # whoever means it does not leave the seal broken
    change(values)
    (folder / CONFIG).write_text(json.dumps(values))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_refused_even_with_a_matching_digest(
    tmp_path: Path, lm: FrozenLM, adapter: Adapter, card: AdapterCard, keep: int
) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    content = (folder / TENSORS).read_bytes()[:keep]
    (folder / TENSORS).write_bytes(content)
    with pytest.raises(AdapterError, match="got other bytes"):
        load_adapter(folder, lm)
    edit_card(folder, lambda values: values.update(tensors_sha256=hashlib.sha256(content).hexdigest()))
    with pytest.raises(AdapterError, match=r"must hold the tensors its configuration names"):
        load_adapter(folder, lm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(colour="red"), r"'colour'.*Extra inputs"),
        (lambda values: values["adapter"].update(alpha=1), r"'alpha'.*Extra inputs"),
        (lambda values: values.pop("base_digest"), r"'base_digest'.*Field required"),
        (lambda values: values.update(format_version=2), r"'format_version'"),
        (lambda values: values["adapter"].update(gate={"kind": "mlp_4"}), r"'gate'.*mlp_4"),
    ],
)
def test_a_card_of_another_layout_is_refused(
    tmp_path: Path, adapter: Adapter, card: AdapterCard, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    edit_card(folder, change)
    with pytest.raises(AdapterError, match=r"as this version writes it, got .*" + message):
        read_card(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "list", "binary", "deep"]
)
def test_a_card_that_is_not_json_is_refused(tmp_path: Path, adapter: Adapter, card: AdapterCard, content: bytes) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(AdapterError, match=r"as this version writes it"):
        read_card(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["adapter"].update(rank=3), r"learned_source\.weight"),
        (lambda values: values["adapter"].update(layers=[1, 2]), r"interventions\.3"),
        (lambda values: values["adapter"].update(layers=[1]), r"interventions\.3"),
        (lambda values: values["adapter"].update(gate={"kind": "mlp_3"}), r"gate\.layers\.0"),
        (lambda values: values["adapter"].update(gate={"kind": "none"}), r"gate\.linear"),
    ],
    ids=["rank", "other layer", "fewer layers", "gate", "no gate"],
)
def test_tensors_must_be_those_of_the_card(
    tmp_path: Path, lm: FrozenLM, adapter: Adapter, card: AdapterCard, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    edit_card(folder, change)
    with pytest.raises(AdapterError, match=r"must hold the tensors its configuration names, got .*" + message):
        load_adapter(folder, lm)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("interventions.1.gate.linear.bias"),
        lambda tensors: tensors.update({"interventions.1.gate.linear.scale": torch.ones(1)}),
        lambda tensors: tensors.update({"interventions.1.gate.linear.weight": torch.ones(1, 31)}),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_wrong_tensors_are_refused(
    tmp_path: Path, lm: FrozenLM, adapter: Adapter, card: AdapterCard, change: Callable[[dict[str, Tensor]], None]
) -> None:
    folder = save_adapter(adapter, card, tmp_path / "adapter")
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    edit_card(folder, lambda values: values.update(tensors_sha256=digest))
    with pytest.raises(
        AdapterError, match=r"must hold the tensors its configuration names, got .*interventions\.1\.gate\.linear"
    ):
        load_adapter(folder, lm)
