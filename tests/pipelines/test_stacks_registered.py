"""Stacks in the flavour and in the registry, on a real base and a real SQLite store."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import yaml
from safetensors.torch import load_file, save_file

from grun.adapters import AdapterCard, digest_stack, member_folders, read_stack_card, save_adapter, save_stack
from grun.config import AdapterConfig, LinearGateConfig, PromptConfig, SumConfig
from grun.data.prompts import PromptEncoder
from grun.errors import AdapterError
from grun.interventions import build_adapter
from grun.lm import FrozenLM, IntervenedLM, load_frozen_lm
from pipelines.mlflow_flavor import adapter_digests, digests_of, load_adapter_folder, load_model, save_model
from pipelines.registry import CANDIDATE, Registry
from pipelines.tracking import Tracker

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

QUESTIONS = ["Where does Ilva Torrent live?", "Who taught Bram Okoye?"]


@pytest.fixture(scope="module")
def lm(base_folder: Path) -> FrozenLM:
    return load_frozen_lm(str(base_folder))


@pytest.fixture(scope="module")
def adapters(lm: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """Three requests' adapters; the gates of the last never open."""
    folder, made = tmp_path_factory.mktemp("adapters"), []
    for seed, threshold in enumerate((None, 0.01, 1.0)):
        config = AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig(), gate_threshold=threshold)
        adapter = build_adapter(config, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=seed)
        card = AdapterCard(
            adapter=config,
            hidden_size=lm.hidden_size,
            num_layers=lm.num_layers,
            base_name=lm.info.name,
            base_digest=lm.info.digest,
            request_ids=(f"r{seed}",),
        )
        made.append((f"r{seed}", save_adapter(adapter, card, folder / f"r{seed}")))
    return made


@pytest.fixture
def stack(adapters: list[tuple[str, Path]], tmp_path: Path) -> Path:
    return save_stack(adapters, SumConfig(), tmp_path / "a stack")


@pytest.fixture
def model(stack: Path, lm: FrozenLM, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", adapter_folder=stack, base=lm.info)
    return tmp_path / "model"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_holds_the_stack_as_it_is(model: Path, stack: Path) -> None:
    assert load_adapter_folder(model) == model / "stack"
    assert files_of(model / "stack") == files_of(stack)
    assert {path.name for path in model.iterdir()} == {"MLmodel", "requirements.txt", "python_env.yaml", "stack"}
    flavor = yaml.safe_load((model / "MLmodel").read_text())["flavors"]["grun"]
    assert flavor["sha256"] == {"stack.json": digest_stack(stack)} == digests_of(stack)


def test_pyfunc_answers_prompts_with_every_member(
    model: Path, lm: FrozenLM, adapters: list[tuple[str, Path]], tmp_path: Path
) -> None:
    answers = mlflow.pyfunc.load_model(str(model)).predict(QUESTIONS)
    assert answers == load_model(model).predict(QUESTIONS)
    ids = [PromptEncoder(lm.tokenizer, PromptConfig(), context=lm.context).prompt_ids(q) for q in QUESTIONS]
    assert answers != list(IntervenedLM(lm).generate(ids, max_new_tokens=64).texts)
    by_members = []
    for number in (1, 2):
        fewer = save_stack(adapters[:number], SumConfig(), tmp_path / f"first {number}")
        save_model(tmp_path / f"model {number}", adapter_folder=fewer, base=lm.info)
        by_members.append(load_model(tmp_path / f"model {number}").predict(QUESTIONS))
    assert by_members[0] != answers
    assert by_members[1] == answers, "the third member is closed"


def change_a_byte(model: Path) -> None:
    path = model / "stack" / "adapters" / "02-r1" / "adapter.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def stack_less(model: Path) -> None:
    """A stack that is whole, but not the one that was saved."""
    card = read_stack_card(model / "stack")
    members = list(zip(card.request_ids, member_folders(model / "stack", card), strict=True))
    save_stack(members[:2], SumConfig(), model / "stack")


def put_an_adapter_in_its_place(model: Path) -> None:
    (model / "stack").rename(model.parent / "elsewhere")
    (model.parent / "elsewhere" / "adapters" / "01-r0").rename(model / "stack")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_a_byte, "must be as it was written"),
        (stack_less, "must be the ones that were saved"),
        (put_an_adapter_in_its_place, "must be the ones that were saved"),
        (lambda model: (model / "adapter").mkdir(), r"not ours: \['adapter'\]"),
        (lambda model: (model / "stack").rename(model / "adapter"), r"missing: \['stack'\], not ours: \['adapter'\]"),
        (lambda model: (model / "stack" / "stack.json").unlink(), "must hold exactly"),
    ],
)
def test_a_model_that_is_not_what_was_saved_is_refused(model: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(model)
    with pytest.raises(AdapterError, match=message):
        load_adapter_folder(model)
    with pytest.raises(AdapterError, match=message):
        mlflow.pyfunc.load_model(str(model))


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("a store")
    return Tracker(f"sqlite:///{folder / 'mlflow.db'}", "grun", folder / "artifacts")


@pytest.fixture
def registry(tracker: Tracker) -> Registry:
    return Registry(tracker)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def stored(tracker: Tracker, name: str, version: int) -> Path:
    location = tracker.client.get_model_version_download_uri(name, str(version))
    return Path(location.removeprefix("file://").replace("%20", " "))


def test_versions_grow_by_a_member_and_come_back(
    registry: Registry, tracker: Tracker, name: str, adapters: list[tuple[str, Path]], lm: FrozenLM, tmp_path: Path
) -> None:
    """The first version may be a plain adapter; a stack has one tag, whatever the number of its members."""
    run_id = tracker.start_run("train")
    _request_id, plain = adapters[0]
    assert registry.register_candidate(name, run_id, plain, lm.info) == 1
    stacks = [save_stack(adapters[:size], SumConfig(), tmp_path / str(size)) for size in (2, 3)]
    assert [registry.register_candidate(name, run_id, stack, lm.info) for stack in stacks] == [2, 3]
    assert registry.register_candidate(name, run_id, stacks[0], lm.info) == 2 == registry.version_of(name, CANDIDATE)
    assert [registry.version_with(name, folder) for folder in (plain, *stacks)] == [1, 2, 3]
    assert tracker.client.get_model_version(name, "3").tags == {"sha256.stack.json": digest_stack(stacks[1])}
    for version, folder, kind in ((1, plain, "adapter"), (2, stacks[0], "stack"), (3, stacks[1], "stack")):
        found, downloaded = registry.download(name, version, tmp_path / "into")
        assert (found, downloaded) == (version, tmp_path / "into" / f"v{version}" / kind)
        assert files_of(downloaded) == files_of(folder)
    source = tracker.client.get_model_version_download_uri(name, "3")
    assert len(mlflow.pyfunc.load_model(source).predict(QUESTIONS)) == 2


def test_a_tampered_stack_is_refused_even_with_forged_digests(
    registry: Registry, tracker: Tracker, name: str, stack: Path, lm: FrozenLM, tmp_path: Path
) -> None:
    registry.register_candidate(name, tracker.start_run("train"), stack, lm.info)
    model = stored(tracker, name, 1)
    before = digest_stack(model / "stack")
    stack_less(model)
    with pytest.raises(AdapterError, match="must be the ones that were saved"):
        registry.download(name, 1, tmp_path / "into")
    model_file = model / "MLmodel"
    model_file.write_text(model_file.read_text().replace(before, digest_stack(model / "stack")))
    with pytest.raises(AdapterError, match="must be the ones that were registered"):
        registry.download(name, 1, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_a_damaged_stack_is_not_registered(registry: Registry, tracker: Tracker, name: str, stack: Path, lm: FrozenLM) -> None:
    (stack / "adapters" / "02-r1" / "adapter.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"missing: \['adapter.safetensors'\]"):
        registry.register_candidate(name, tracker.start_run("train"), stack, lm.info)
    assert tracker.client.search_registered_models(f"name = '{name}'") == []


def test_an_adapter_keeps_its_digests(adapters: list[tuple[str, Path]]) -> None:
    _request_id, folder = adapters[0]
    assert digests_of(folder) == adapter_digests(folder)


def test_another_base_than_the_stacks_is_refused(model: Path, base_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base_folder, tmp_path / "other base")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="loads only on the base it was trained on"):
        load_model(model, base_path=str(other)).predict(QUESTIONS)
