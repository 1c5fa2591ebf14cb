"""Folders that somebody made on purpose: links, bombs and numbers that stand for others."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grun.adapters import AdapterCard, load_adapter, read_card, save_adapter
from grun.adapters.folder import ADAPTER_CONFIG, ADAPTER_TENSORS
from grun.adapters.official import import_official
from grun.config import AdapterConfig, LinearGateConfig
from grun.errors import AdapterError
from grun.interventions import Adapter
from grun.lm import FrozenLM
from grun.reading import digest_file
from tests.adapters.test_official import draw_state, file_of, write_checkpoint


@pytest.fixture
def folder(adapter: Adapter, tmp_path: Path) -> Path:
    config = AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig())
    card = AdapterCard(adapter=config, hidden_size=32, num_layers=4, base_name="tiny", base_digest="d" * 64)
    return save_adapter(adapter, card, tmp_path / "adapter")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Other tensors, under their own digest."""
    path = folder / ADAPTER_TENSORS
    before = digest_file(path)
    save_file(change(load_file(path)), path)
    config = folder / ADAPTER_CONFIG
    values = json.loads(config.read_text(encoding="utf-8").replace(before, digest_file(path)))
    del values["sha256"]  # whoever means it does not leave the seal broken
    config.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_TENSORS])
def test_a_link_in_place_of_a_file_is_refused(folder: Path, name: str, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match="symbolic links"):
        read_card(folder)


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_TENSORS])
def test_a_pipe_in_place_of_a_file_does_not_hang(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(AdapterError, match="no plain file"):
        read_card(folder)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64, torch.int64])
def test_numbers_of_another_type_are_refused_and_not_turned_into_others(folder: Path, lm: FrozenLM, dtype: torch.dtype) -> None:
    rewrite(folder, lambda tensors: {name: value.to(dtype) for name, value in tensors.items()})
    with pytest.raises(AdapterError, match="must be in float32"):
        load_adapter(folder, lm)


def test_ten_thousand_foreign_tensors_do_not_fill_the_message(folder: Path, lm: FrozenLM) -> None:
    rewrite(folder, lambda tensors: {**tensors, **{f"x{n}": torch.zeros(0) for n in range(10_000)}})
    with pytest.raises(AdapterError, match="must hold the tensors its configuration names") as caught:
        load_adapter(folder, lm)
    assert len(str(caught.value)) < 2000


def test_one_number_that_stands_for_any_many_is_refused(tmp_path: Path, lm: FrozenLM) -> None:
    write_checkpoint(tmp_path)
    vast = torch.zeros(1).expand(2**40)  # four terabytes, if anybody counted them
    torch.save(draw_state("linear", seed=1) | {"bias": vast}, file_of(tmp_path, 1))
    with pytest.raises(AdapterError, match="finite floating-point tensors, got another `bias`"):
        import_official(tmp_path, lm)


def test_a_compressed_layer_is_refused_before_it_is_unpacked(tmp_path: Path, lm: FrozenLM) -> None:
    write_checkpoint(tmp_path)
    packed = io.BytesIO()
    with zipfile.ZipFile(file_of(tmp_path, 1)) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as copy:
        for member in archive.infolist():
            copy.writestr(member.filename, archive.read(member))
        copy.writestr("archive/data/9", bytes(2**24))
    file_of(tmp_path, 1).write_bytes(packed.getvalue())
    with pytest.raises(AdapterError, match=r"was refused \(MalformedError\)"):
        import_official(tmp_path, lm)


def test_a_layer_that_is_a_link_is_refused(tmp_path: Path, lm: FrozenLM) -> None:
    write_checkpoint(tmp_path)
    file_of(tmp_path, 1).rename(tmp_path / "elsewhere")
    file_of(tmp_path, 1).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match=r"was refused \(OSError\)"):
        import_official(tmp_path, lm)
