"""The recipes that are shipped: each is complete, and the paper's settings are the paper's."""

import re
from pathlib import Path

import pytest

from grun.config import HubData, IdkConfig, Mlp3GateConfig, NpoConfig, Recipe, TofuData, read_recipe_file
from grun.interventions import check_fits
from pipelines.cli import RECIPES, parse_command
from tune_spaces import find_space

LLAMA = "llama31_8b_tofu_forget05_h100"


def recipe(name: str, *argv: str) -> Recipe:
    return parse_command("Do it.", ["--recipe", name, *argv])[0]


@pytest.fixture(params=sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def shipped(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_every_recipe_parses_under_a_name_of_the_form_model_benchmark_split_hardware(shipped: Path) -> None:
    parsed = recipe(shipped.stem)
    name = r"[a-z0-9_]+_tofu_forget\d\d_[a-z0-9]+|tofu_[a-z0-9]+_forget\d\d_[a-z0-9]+|[a-z]+_testbed_[a-z0-9]+"
    assert re.fullmatch(name, shipped.stem)
    assert shipped.stem.startswith(parsed.name)
    find_space(parsed.sweep.space).check(parsed)


def test_every_recipe_names_its_data_and_its_request(shipped: Path) -> None:
    values = read_recipe_file(shipped)
    assert {"name", "request", "data", "model"} <= values.keys()
    assert values["data"]["kind"] == "testbed" or not Path(values["data"]["path"]).is_absolute()


def test_every_recipe_has_a_header_that_says_what_it_is(shipped: Path) -> None:
    assert shipped.read_text(encoding="utf-8").startswith("# ")


def test_the_llama_recipe_has_the_papers_settings() -> None:
    parsed = recipe(LLAMA)
    train, objective, adapter = parsed.train, parsed.objective, parsed.adapter
    assert (train.epochs, train.batch_size, train.learning_rate, train.warmup_steps) == (40, 16, 4e-3, 0)
    assert (train.weight_decay, train.grad_clip, parsed.seed) == (0, 1, 42)
    assert (adapter.layers, adapter.rank, adapter.gate) == ((20, 25, 31), 4, Mlp3GateConfig())
    assert objective.gate_weight == 10
    assert objective.gate_warmup_steps == 0
    assert (objective.forget.kind, objective.forget.weight) == ("gd", 1)
    assert (objective.retain.kind, objective.retain.weight) == ("ce", 2)


def test_the_llama_recipe_runs_sharded_in_bf16_on_gpus_with_a_pad_token_of_its_own() -> None:
    parsed = recipe(LLAMA)
    assert (parsed.train.engine, parsed.train.zero_stage, parsed.train.use_gpu) == ("deepspeed", 3, True)
    assert (parsed.model.dtype, parsed.model.pad_token) == ("bfloat16", "<|finetune_right_pad_id|>")
    assert parsed.model.retain_path is not None
    assert isinstance(parsed.data, HubData)
    assert (parsed.data.forget, parsed.data.retain) == ("forget05_perturbed", "retain95")


def test_the_llama_recipe_fits_a_model_of_the_shape_of_llama_31_8b() -> None:
    assert check_fits(recipe(LLAMA).adapter, hidden_size=4096, num_layers=32) == (20, 25, 31)


def test_the_options_that_its_header_names_give_the_papers_npo_and_idk() -> None:
    header = (RECIPES / f"{LLAMA}.yaml").read_text(encoding="utf-8")
    npo, idk = re.findall(r"For (?:NPO|IDK): `([^`]*)`|for IDK: `([^`]*)`", header)
    options = npo[0].split(), idk[1].split()
    assert recipe(LLAMA, *options[0]).objective.forget == NpoConfig(weight=100, beta=0.1)
    assert recipe(LLAMA, *options[1]).objective.forget == IdkConfig(weight=1)
    assert [recipe(LLAMA, *words).objective.retain.weight for words in options] == [1, 1]


def test_the_small_recipe_teaches_tofu_on_a_cpu() -> None:
    parsed = recipe("tofu_small_forget05_cpu")
    assert isinstance(parsed.data, TofuData)
    assert parsed.data.forget == "forget05"
    assert parsed.model.path is None
    assert parsed.model.retain_twin
    assert not parsed.train.use_gpu
    assert not parsed.evaluation.use_gpu
    taught = parsed.model.taught
    assert check_fits(parsed.adapter, hidden_size=taught.hidden_size, num_layers=taught.num_layers) == (3, 4, 5)


def test_the_hardened_recipe_is_the_embedded_request_with_wrapped_questions() -> None:
    parsed, plain = recipe("hardened_testbed_cpu"), Recipe()
    assert (parsed.request, parsed.data, parsed.model, parsed.objective) == (
        plain.request,
        plain.data,
        plain.model,
        plain.objective,
    )
    families = parsed.train.augmentation.families
    assert parsed.train.augmentation.variants == len(families), "each question meets every family once"
    assert parsed.adapter.resolve_layers(parsed.model.taught.num_layers) == (3,)
