"""Bad input about adapters: in the registry, and in folders."""

import argparse
import hashlib
import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.torch import load_file, save_file

from grun.adapters import AdapterCard, read_card, save_adapter
from grun.config import AdapterConfig, LinearGateConfig, Recipe
from grun.errors import PromotionError
from grun.interventions import build_adapter
from grun.lm.frozen import BaseInfo, digest_weights
from pipelines.evaluate import _version as version_option
from pipelines.evaluate import find_adapter
from pipelines.recording import check_is_demo
from pipelines.registry import Registry
from pipelines.tracking import Tracker
from tests.pipelines.bad_input.conftest import Verb


@pytest.fixture(scope="module")
def registered(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny base, and a store in which it is the candidate."""
    folder = tmp_path_factory.mktemp("registered")
    config, digest = AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig()), digest_weights(base_folder)
    card = AdapterCard(adapter=config, hidden_size=32, num_layers=4, base_name="tiny", base_digest=digest)
    adapter = save_adapter(build_adapter(config, hidden_size=32, num_layers=4, seed=0), card, folder / "adapter")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "grun", folder / "artifacts")
    with tracker.run("earlier") as run_id:
        Registry(tracker).register_candidate("grun-demo", run_id, adapter, BaseInfo("tiny", None, digest))
    return folder


class TestRequest:
    """A misspelt request: nobody else's adapter, and none of the demonstration, may be taken for its own."""

    @pytest.mark.parametrize("verb", ["evaluate", "promote"])
    def test_nothing_is_trained_in_passing_for_a_request_without_an_adapter(
        self,
        data: Callable[..., list[object]],
        base: Path,
        registered: Path,
        tmp_path: Path,
        verb: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        module = importlib.import_module(f"pipelines.{verb}")
        for name in ("connected", "check_resources", "prepare"):
            monkeypatch.setattr(module, name, lambda *_: nullcontext())
        store = Path(shutil.copytree(registered, tmp_path / "registered"))
        options = [*data(), "--model.path", base, "--tracking.uri", f"sqlite:///{store}/mlflow.db", "--request.id", "dmo"]
        with pytest.raises(PromotionError) as caught:
            module.main([str(option) for option in (*options, "--output", tmp_path / "output")])
        assert str(caught.value) == (
            "an adapter must be registered before it is scored or promoted, got none as grun-dmo (did you mean `grun-demo`?); "
            "registered are grun-demo: check `request.id`, or run sweep or train with the same options first"
        )

    def test_the_demonstration_may_be_trained_in_passing(self, tmp_path: Path) -> None:
        tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "grun", tmp_path / "artifacts")
        check_is_demo(Recipe(), tracker)
        assert Registry(tracker).names() == []

    def test_a_version_is_a_number_or_an_alias(self, registered: Path, tmp_path: Path) -> None:
        store = Path(shutil.copytree(registered, tmp_path / "registered"))
        tracker = Tracker(f"sqlite:///{store}/mlflow.db", "grun", store / "artifacts")
        for given in ("1", "candidate"):
            options = argparse.Namespace(adapter=None, version=version_option(given))
            found = find_adapter(Recipe(output=tmp_path), cast(Any, None), tracker, options)
            assert read_card(found).adapter.layers == (1, 3)

    def test_a_folder_of_ones_own_is_not_taken_for_tofu(self, run: Verb, data: Callable[..., list[object]]) -> None:
        _kind, _jsonl, *path = data()
        assert "set `--data.kind jsonl`" in run("train", *path).message


def read_values(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    del values["sha256"]  # whoever means it does not leave the seal broken
    return values


class TestAdapterFolder:
    """`evaluate --adapter FOLDER`, beside a registry that must stay as it is."""

    @pytest.fixture
    def adapter(self, registered: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(registered, tmp_path / "registered")) / "adapter"

    @pytest.fixture
    def evaluate(self, run: Verb, data: Callable[..., list[object]], base: Path, adapter: Path) -> Callable[[], str]:
        options = [*data(), "--model.path", base, "--tracking.uri", f"sqlite:///{adapter.parent}/mlflow.db"]
        return lambda: run("evaluate", *options, "--adapter", adapter).message

    @staticmethod
    def rewrite(folder: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Replace the tensors, and their digest in the configuration, as somebody who meant it would."""
        tensors = folder / "adapter.safetensors"
        save_file(dict(change(load_file(tensors))), tensors)
        card = read_values(folder)
        card["tensors_sha256"] = hashlib.sha256(tensors.read_bytes()).hexdigest()
        (folder / "adapter_config.json").write_text(json.dumps(card), encoding="utf-8")

    def test_an_adapter_for_another_base(self, evaluate: Callable[[], str], adapter: Path, base: Path) -> None:
        before = read_card(adapter).base_digest
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}), encoding="utf-8")
        message = evaluate()
        assert "an adapter loads only on the base it was trained on, got one for " in message
        assert before[:12] in message
        assert digest_weights(base)[:12] in message
        assert "name that base by `model.path`" in message

    def test_damaged_tensors(self, evaluate: Callable[[], str], adapter: Path) -> None:
        content = bytearray((adapter / "adapter.safetensors").read_bytes())
        content[-1] ^= 1
        (adapter / "adapter.safetensors").write_bytes(content)
        message = evaluate()
        assert "`adapter.safetensors` must be as it was written, got other bytes" in message
        assert "fetch the adapter again" in message

    def test_a_truncated_file_under_its_own_digest(self, evaluate: Callable[[], str], adapter: Path) -> None:
        short = (adapter / "adapter.safetensors").read_bytes()[:100]
        (adapter / "adapter.safetensors").write_bytes(short)
        card = {**read_values(adapter), "tensors_sha256": hashlib.sha256(short).hexdigest()}
        (adapter / "adapter_config.json").write_text(json.dumps(card), encoding="utf-8")
        message = evaluate()
        assert "`adapter.safetensors` must hold the tensors its configuration names, got " in message
        assert "fetch the adapter again" in message

    def test_tensors_of_another_shape(self, evaluate: Callable[[], str], adapter: Path) -> None:
        name = "interventions.1.intervention.learned_source.bias"
        self.rewrite(adapter, lambda tensors: {**tensors, name: tensors[name].repeat(2)})
        message = evaluate()
        assert "must hold the tensors its configuration names, got " in message
        assert name in message
        assert "fetch the adapter again" in message

    def test_a_folder_that_is_none(self, evaluate: Callable[[], str], adapter: Path) -> None:
        shutil.rmtree(adapter)
        assert "an adapter is a folder of exactly `adapter_config.json` and `adapter.safetensors`" in evaluate()
