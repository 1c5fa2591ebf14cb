"""A base model is loaded whole, frozen and known by its content, or refused with one clear message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from grun.data.batches import collate
from grun.data.prompts import Example
from grun.errors import ModelError
from grun.lm import BaseInfo, FrozenLM, IntervenedLM, digest_weights, freeze, load_frozen_lm, load_tokenizer, resolve_folder

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(base_folder, tmp_path / "copy")


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_loaded_base_is_frozen_and_equal(folder: Path, tiny_lm: FrozenLM) -> None:
    lm = load_frozen_lm(str(folder))
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not any(module.training for module in lm.model.modules())
    assert (lm.num_layers, lm.hidden_size, lm.context, lm.pad_id) == (4, 32, 128, 0)
    assert lm.info == BaseInfo(str(folder), None, digest_weights(folder))
    batch = collate([Example("", (40, 41, 42, 1), 2)], pad_id=lm.pad_id)
    assert torch.equal(IntervenedLM(lm).logits(batch), IntervenedLM(tiny_lm).logits(batch))


def test_dtype_is_the_one_asked_for(folder: Path) -> None:
    lm = load_frozen_lm(str(folder), dtype="bfloat16")
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["absolute", "./relative", "a/b/c"])
def test_missing_folder(name: str, tmp_path: Path) -> None:
    given = str(tmp_path / "nowhere") if name == "absolute" else name
    with pytest.raises(ModelError, match=r"must be an existing model folder, got .*check the path") as caught:
        load_frozen_lm(given)
    assert given in str(caught.value)


def test_hub_name_without_a_hub() -> None:
    with pytest.raises(ModelError, match=r"got 'nobody/nothing' \(\w+\); check the name, or download the model"):
        resolve_folder("nobody/nothing")


def test_folder_without_a_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"got '.*copy' without a config.json; check the path"):
        load_frozen_lm(str(folder))


def test_malformed_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"must have a valid config.json, got '.*copy': .*; download it again"):
        load_frozen_lm(str(folder))


def test_unknown_model_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values.update(model_type="abacus"))
    with pytest.raises(ModelError, match=r"valid config.json, got .*abacus.*; download it again"):
        load_frozen_lm(str(folder))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def without_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 64)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def with_a_narrow_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.layers.2.mlp.up_proj.weight"] = tensors["model.layers.2.mlp.up_proj.weight"][:, :-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", [truncated, without_header, empty, missing, without_a_tensor, with_a_narrow_tensor])
def test_damaged_weights(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"must hold a causal language model, got '.*copy': .*; check or download it again"):
        load_frozen_lm(str(folder))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"safetensors.*; check or download it again"):
        load_frozen_lm(str(folder))


def test_folder_without_a_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(
        ModelError, match=r"^a base model must come with its tokenizer, got '.*copy': .*; add the tokenizer's files$"
    ):
        load_frozen_lm(str(folder))


def test_tokenizer_without_a_pad_token(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", lambda values: values.pop("pad_token"))
    with pytest.raises(ModelError, match=r"must have a pad token, got one without \(.*copy.*set `model.pad_token`"):
        load_frozen_lm(str(folder))
    lm = load_frozen_lm(str(folder), pad_token="<|end|>")
    assert lm.pad_id == lm.tokenizer.eos_token_id


def test_pad_token_must_exist(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert load_tokenizer(folder, "!").pad_token_id == tokenizer.convert_tokens_to_ids("!")
    with pytest.raises(ModelError, match="must be in the tokenizer's vocabulary, got '<nope>'; name an existing token"):
        load_tokenizer(folder, "<nope>")


def test_pad_token_may_be_the_unknown_token(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", lambda values: values.update(unk_token="!"))
    assert load_tokenizer(folder, "!").pad_token == "!"


def tiny(**names: object) -> dict[str, object]:
    return {"vocab_size": 320, "pad_token_id": 0, "eos_token_id": 1, **names}


def bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**tiny(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)))  # type: ignore[arg-type]


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(**tiny(d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)))  # type: ignore[arg-type]


def bart() -> PreTrainedModel:
    width = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    depth = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(BartConfig(**tiny(**width, **depth)))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [bert, t5, bart])
def test_only_decoders_are_bases(
    family: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    family().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"decoder-only|causal language model"):
        load_frozen_lm(str(tmp_path))


def test_encoder_decoder_in_memory(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ModelError, match="got 2 candidates in T5ForConditionalGeneration; only decoder-only"):
        freeze(t5(), tokenizer, BaseInfo("t5", None, ""))


def test_digest_does_not_depend_on_the_place_or_the_writer(base_folder: Path, folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values.update(_name_or_path="elsewhere", transformers_version="0"))
    (folder / "README.md").write_text("notes")
    assert digest_weights(folder) == digest_weights(base_folder)


def one_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"][3] += 2**-10
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def one_setting(folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values.update(rms_norm_eps=1e-3))


def one_merge(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", lambda values: values["model"]["merges"].pop())  # type: ignore[index]


@pytest.mark.parametrize("change", [one_weight, one_setting, one_merge])
def test_digest_changes_with(base_folder: Path, folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    assert digest_weights(folder) != digest_weights(base_folder)


def test_digest_is_never_stale(folder: Path) -> None:
    before = digest_weights(folder)
    one_weight(folder)
    assert digest_weights(folder) != before
