"""The flavour of an adapter: what a model folder holds, and everything that loading it refuses."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import mlflow
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
import yaml
from safetensors.torch import save_file

from grun.adapters import AdapterCard
from grun.certificate import Certificate, OpenCount
from grun.config import AdapterConfig, LinearGateConfig
from grun.errors import AdapterError
from grun.evaluation.gate_separation import clopper_pearson_upper
from grun.lm import BaseInfo
from pipelines.mlflow_flavor import (
    adapter_digests,
    load_adapter_folder,
    load_model,
    save_model,
)

BASE = BaseInfo(name="hub/base", revision="abc123", digest="d" * 64)
# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

PICKLE_OPCODES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"layers.3.gate": torch.ones(8)}, folder / "adapter.safetensors")
    digest = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
    (folder / "adapter_config.json").write_text(make_card(digest).model_dump_json())
    return folder


def make_card(digest: str) -> AdapterCard:
    """A card with a certificate that holds."""
    counts = (
        OpenCount(num_records=200, num_open=0, upper_bound=clopper_pearson_upper(0, 200), digest=name) for name in ("c", "k")
    )
    certificate = Certificate.make(
        alpha=0.03,
        delta=0.05,
        thresholds={3: 0.5},
        calibration=next(counts),
        check=next(counts),
        base_digest="d" * 64,
        tensors_sha256=digest,
    )
    return AdapterCard(
        adapter=AdapterConfig(layers=(3,), gate=LinearGateConfig()),
        hidden_size=8,
        num_layers=4,
        base_name="hub/base",
        base_digest="d" * 64,
        tensors_sha256=digest,
        certificate=certificate,
    )


@pytest.fixture
def model(adapter: Path, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", adapter_folder=adapter, base=BASE)
    return tmp_path / "model"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str, list[str], int]]:
    """Stand in for generation, which needs a base model; collects what it was asked."""
    calls: list[tuple[Path, str, list[str], int]] = []

    def answer_with_adapter(adapter_folder: Path, base_path: str, prompts: list[str], max_new_tokens: int) -> list[str]:
        calls.append((adapter_folder, base_path, prompts, max_new_tokens))
        return [prompt.upper() for prompt in prompts]

    module = ModuleType("pipelines.generation")
    module.__dict__["answer_with_adapter"] = answer_with_adapter
    monkeypatch.setitem(sys.modules, "pipelines.generation", module)
    return calls


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_five_files_without_code_or_pickle(model: Path) -> None:
    assert files_of(model) == {
        "MLmodel",
        "requirements.txt",
        "python_env.yaml",
        "adapter/adapter_config.json",
        "adapter/adapter.safetensors",
    }
    for path in model.rglob("*"):
        assert not (path.is_file() and path.read_bytes().startswith(PICKLE_OPCODES))
    flavors = yaml.safe_load((model / "MLmodel").read_text())["flavors"]
    assert set(flavors) == {"grun", "python_function"}
    assert flavors["python_function"]["loader_module"] == "pipelines.mlflow_flavor"
    assert "code" not in flavors["python_function"]


def test_a_model_names_its_base_and_its_digests(model: Path, adapter: Path) -> None:
    config = yaml.safe_load((model / "MLmodel").read_text())["flavors"]["grun"]
    assert config == {
        "format_version": 1,
        "sha256": adapter_digests(adapter),
        "base_name": "hub/base",
        "base_revision": "abc123",
        "base_digest": "d" * 64,
    }


def test_a_model_names_what_its_loader_needs(model: Path) -> None:
    requirements = (model / "requirements.txt").read_text().split()
    assert f"mlflow=={mlflow.__version__}" in requirements
    assert not any("+" in line for line in requirements), "a local version is on no index"
    environment = yaml.safe_load((model / "python_env.yaml").read_text())
    assert environment["dependencies"] == ["-r requirements.txt"]


def test_digests_are_the_files_own_sha256(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(b"abc")
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    assert adapter_digests(tmp_path) == {
        "adapter_config.json": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "adapter.safetensors": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }


def test_the_adapter_comes_back_as_it_was(model: Path, adapter: Path) -> None:
    folder = load_adapter_folder(model)
    assert folder == model / "adapter"
    for name in ("adapter_config.json", "adapter.safetensors"):
        assert (folder / name).read_bytes() == (adapter / name).read_bytes()


def flip_a_byte(model: Path) -> None:
    path = model / "adapter" / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def link_a_file(model: Path) -> None:
    path = model / "adapter" / "adapter_config.json"
    path.rename(model.parent / "elsewhere.json")
    path.symlink_to(model.parent / "elsewhere.json")


def link_the_folder(model: Path) -> None:
    (model / "adapter").rename(model.parent / "elsewhere")
    (model / "adapter").symlink_to(model.parent / "elsewhere")


def forge_digests(model: Path, **sha256: object) -> None:
    content = yaml.safe_load((model / "MLmodel").read_text())
    content["flavors"]["grun"] |= sha256
    (model / "MLmodel").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "must be the ones that were saved"),
        (link_a_file, "must hold plain files"),
        (link_the_folder, "must be a folder"),
        (lambda model: (model / "adapter" / "adapter.safetensors").unlink(), r"missing: \['adapter.safetensors'\]"),
        (lambda model: (model / "adapter" / "more.safetensors").write_bytes(b""), r"not ours: \['more.safetensors'\]"),
        (lambda model: (model / "python_model.pkl").write_bytes(b""), r"not ours: \['python_model.pkl'\]"),
        (lambda model: (model / "code").mkdir(), r"not ours: \['code'\]"),
        (lambda model: (model / "requirements.txt").unlink(), r"missing: \['requirements.txt'\]"),
        (lambda model: forge_digests(model, sha256=None), "must be the ones that were saved"),
        (lambda model: forge_digests(model, sha256={"../../etc/passwd": "0"}), "must be the ones that were saved"),
        (lambda model: forge_digests(model, format_version=2), "format must be 1, got 2"),
        (lambda model: (model / "MLmodel").unlink(), "folder with an MLmodel file"),
        (lambda model: (model / "MLmodel").write_text("flavors: {python_function: {}}"), "of the flavour `grun`"),
        (lambda model: (model / "MLmodel").write_text("flavors: {grun: [1, 2]}"), "of the flavour `grun`"),
        (lambda model: (model / "MLmodel").write_text("flavors: &a {grun: *a}"), "an anchor or alias in line 1"),
        (lambda model: (model / "MLmodel").write_text("- " * 50_000), "nested too deeply"),
        (lambda model: (model / "MLmodel").write_bytes(bytes(2**21)), "at most 1048576 make sense"),
        (lambda model: (model / "MLmodel").write_text("!!python/object/apply:os.getcwd []"), "folder with an MLmodel file"),
        (lambda model: (model / "MLmodel").write_bytes(b"\xff\xfe"), "folder with an MLmodel file"),
    ],
)
def test_a_model_that_is_not_what_was_saved_is_refused(model: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(model)
    with pytest.raises(AdapterError, match=message):
        load_adapter_folder(model)


def test_what_mlflow_adds_to_a_download_is_not_an_intruder(model: Path) -> None:
    (model / "registered_model_meta").write_text("model_name: m\n")
    assert load_adapter_folder(model) == model / "adapter"


def test_only_an_adapter_is_saved(adapter: Path, tmp_path: Path) -> None:
    (adapter / "optimizer.pt").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"not ours: \['optimizer.pt'\]"):
        save_model(tmp_path / "model", adapter_folder=adapter, base=BASE)
    assert not (tmp_path / "model").exists()
    with pytest.raises(AdapterError, match="must be a folder"):
        save_model(tmp_path / "model", adapter_folder=tmp_path / "missing", base=BASE)


@pytest.mark.parametrize("prompts", [["why?", "who?"], pd.Series(["why?", "who?"]), pd.DataFrame({"prompt": ["why?", "who?"]})])
def test_a_loaded_model_answers_prompts(model: Path, asked: list[object], prompts: object) -> None:
    assert load_model(model, base_path="/bases/b", max_new_tokens=3).predict(prompts) == ["WHY?", "WHO?"]
    assert asked == [(model / "adapter", "/bases/b", ["why?", "who?"], 3)]


@pytest.mark.parametrize("prompts", ["why?", ["why?"], pd.Series(["why?"]), pd.DataFrame([["why?"]])])
def test_pyfunc_answers_with_the_recorded_base(model: Path, asked: list[object], prompts: object) -> None:
    assert mlflow.pyfunc.load_model(str(model)).predict(prompts) == ["WHY?"]
    assert asked == [(model / "adapter", "hub/base", ["why?"], 64)]


def test_pyfunc_takes_the_base_and_the_length_from_model_config(model: Path, asked: list[object]) -> None:
    loaded = mlflow.pyfunc.load_model(str(model), model_config={"base_path": "/bases/b", "max_new_tokens": 7})
    loaded.predict(["why?"])
    assert asked == [(model / "adapter", "/bases/b", ["why?"], 7)]


def test_pyfunc_refuses_a_tampered_adapter(model: Path) -> None:
    flip_a_byte(model)
    with pytest.raises(AdapterError, match="must be the ones that were saved"):
        mlflow.pyfunc.load_model(str(model))


def test_a_certificate_that_was_changed_under_forged_digests_is_refused_on_load(model: Path) -> None:
    path = model / "adapter" / "adapter_config.json"
    card = json.loads(path.read_text())
    card["certificate"]["check"]["num_open"] = 3
    path.write_text(json.dumps(card))
    forge_digests(model, sha256=adapter_digests(model / "adapter"))
    with pytest.raises(AdapterError, match="a certificate must bound its own counts"):
        mlflow.pyfunc.load_model(str(model))


def test_pyfunc_holds_its_callers_to_texts(model: Path, asked: list[object]) -> None:
    signature = mlflow.pyfunc.load_model(str(model)).metadata.signature
    assert [str(column.type) for column in signature.inputs] == ["DataType.string"]
    assert [str(column.type) for column in signature.outputs] == ["DataType.string"]
