"""The schema of a run: documented, closed, frozen, free of torch, and clear about what is wrong."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from grun import config, requests
from grun.config import (
    AdapterConfig,
    InvarianceConfig,
    JsonlData,
    Recipe,
    RequestConfig,
    TofuData,
    TrainConfig,
    merge,
    read_recipe_file,
)
from grun.config.base import Config
from grun.errors import ConfigError, near_miss

SECTIONS = [
    member
    for module in (config, requests)
    for _, member in inspect.getmembers(module, inspect.isclass)
    if issubclass(member, Config) and member is not Config
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_section_and_field_is_documented(section: type[Config]) -> None:
    assert section.__doc__
    # a `kind` only names its class, whose docstring is the description
    bare = [name for name, field in section.model_fields.items() if not field.description and name != "kind"]
    assert bare == []


def test_sections_are_those_of_the_schema() -> None:
    reachable: set[type[Config]] = set()

    def visit(section: type[Config]) -> None:
        reachable.add(section)
        for name in section.model_json_schema().get("$defs", {}):
            reachable.add(getattr(config, name))

    visit(Recipe)
    assert reachable == {section for section in SECTIONS if section.__module__.startswith("grun.config")}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_section_is_closed_and_frozen(section: type[Config]) -> None:
    assert section.model_config["extra"] == "forbid"
    assert section.model_config["frozen"] is True


def test_recipe_cannot_be_changed() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.epochs = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adaptor": {}}, "unknown key `adaptor` in the top level (did you mean `adapter`?)"),
        ({"adapter": {"rnak": 4}}, "unknown key `rnak` in adapter (did you mean `rank`?)"),
        ({"model": {"taught": {"hiden_size": 4}}}, "unknown key `hiden_size` in model.taught (did you mean `hidden_size`?)"),
        ({"train": {"zzz": 1}}, "unknown key `zzz` in train"),
        ({"data": {"kind": "tofu", "path": "x", "holdout_fraction": 0.2}}, "(did you mean `holdout_frac`?)"),
        ({"objective": {"forget": {"kind": "npo", "betta": 1}}}, "(did you mean `beta`?)"),
    ],
)
def test_unknown_key_and_its_near_miss(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(values, where="recipe.yaml")
    assert str(caught.value).startswith("recipe.yaml is not a valid recipe: unknown key ")
    assert str(caught.value).endswith(message)


def test_key_of_another_kind_is_not_suggested_to_itself() -> None:
    with pytest.raises(ConfigError, match=r"unknown key `beta` in objective\.forget") as caught:
        Recipe.parse({"objective": {"forget": {"kind": "gd", "beta": 1}}})
    assert "did you mean `beta`" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adapter": {"rank": 0}}, r"`adapter.rank`: .*greater than 0, got 0$"),
        ({"adapter": {"rank": "four"}}, r"`adapter.rank`: .*valid integer.*, got 'four'$"),
        ({"adapter": {"layers": [3, 1]}}, r"`adapter`: `layers` must be strictly increasing, got \(3, 1\); sort it"),
        ({"adapter": {"layers": [3, 3]}}, r"`layers` must be strictly increasing, got \(3, 3\)"),
        ({"adapter": {"layers": []}}, r"`adapter.layers`: must have at least 1 item, got \[\]$"),
        ({"adapter": {"layers": [0, -1]}}, r"`adapter.layers.1`: .*greater than or equal to 0, got -1"),
        ({"adapter": {"relative_depths": [0.5, 1.0]}}, r"`adapter.relative_depths.1`: .*less than 1, got 1.0"),
        ({"adapter": {"gate_threshold": 1.5}}, r"`adapter.gate_threshold`: .*less than or equal to 1, got 1.5"),
        ({"adapter": {"gate": {"kind": "cubic"}}}, r"`adapter.gate`: .*'cubic'.*'linear', 'mlp_3', 'mlp_5'"),
        ({"train": {"learning_rate": float("inf")}}, r"`train.learning_rate`: .*finite.*, got inf"),
        ({"train": {"batch_size": 16, "num_workers": 3}}, r"`batch_size` must be a multiple of `num_workers`, got .*=16, .*=3; "),
        ({"model": {"taught": {"hidden_size": 30}}}, r"`model.taught`: `num_heads` must divide `hidden_size`.*, got .*=30, .*=4"),
        ({"model": {"quantization": "int2"}}, r"`model.quantization`: .*'none', 'int8' or 'int4', got 'int2'"),
        (
            {"model": {"quantization": "int8", "decomposition": "nf4"}},
            r"`model`: a base is stored in one format, got .*='int8' and .*='nf4'; set one of them to `none`",
        ),
        ({"request": {"id": "../../etc"}}, r"`request.id`: must be 1 to 63 letters, .*, got '../../etc'"),
        ({"name": "a/b"}, r"`name`: must be 1 to 63 letters, .*, got 'a/b'"),
        ({"name": ""}, r"`name`: must be 1 to 63 letters, .*, got ''"),
        ({"request": 5}, r"`request`: must be a mapping of fields, got 5$"),
        ({"adapter": {"gate": [7]}}, r"`adapter.gate`: must be a mapping of fields, got \[7\]$"),
        ({"adapter": {"gate": {}}}, r"`adapter.gate`: must say its `kind`$"),
        ({"adapter": {"layers": 3}}, r"`adapter.layers`: must be a list, got 3$"),
        ({"output": 5}, r"`output`: must be a path, got 5$"),
    ],
)
def test_bad_value_is_named_with_its_rule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Recipe.parse(values)
    assert str(caught.value).count("got ") <= 1


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse({"adapter": {"rank": 0}, "train": {"epochs": -1}, "sed": 1})
    for part in ("`adapter.rank`", "`train.epochs`", "`sed`"):
        assert part in str(caught.value)


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_stages_that_shard_nothing_are_refused_with_the_reason(stage: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"`train.zero_stage`: .*only the adapter's few kilobytes here, got {stage}; use 3 .* or 0"
    ):
        Recipe.parse({"train": {"zero_stage": stage}})


def test_zero_stages() -> None:
    assert [TrainConfig(zero_stage=stage).zero_stage for stage in (0, 3)] == [0, 3]
    with pytest.raises(ConfigError, match="must be 0 or 3, got 4"):
        Recipe.parse({"train": {"zero_stage": 4}})


def test_a_second_derivative_through_a_sharded_base_is_refused_with_the_remedy() -> None:
    twice = {"objective": {"invariance": {"reading": "parameters"}}}
    with pytest.raises(
        ConfigError,
        match=r"sharded by ZeRO-3 cannot, got `train.engine` deepspeed .* 3; set `train.engine: torch`, or `reading: logits`",
    ):
        Recipe.parse(twice)
    for train in ({"engine": "torch"}, {"zero_stage": 0}):
        assert Recipe.parse({**twice, "train": train}).objective.invariance == InvarianceConfig(reading="parameters")
    assert Recipe.parse({"objective": {"invariance": {}}}).objective.invariance == InvarianceConfig(reading="logits")


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "layers": {"adapter": {"layers": [1, 2], "gate_threshold": None, "gate": {"kind": "mlp_5"}}},
    "tofu": {"data": {"kind": "tofu", "path": "/tofu", "forget": "forget10"}},
    "jsonl": {"data": {"kind": "jsonl", "path": "rows", "holdout": "other/rows.jsonl"}},
    "hub": {"data": {"kind": "hub", "path": "somebody/facts"}, "model": {"path": "somebody/model", "dtype": "bfloat16"}},
    "gd": {"objective": {"forget": {"kind": "gd", "weight": 0.5}, "retain": {"kind": "kl"}}},
    "npo": {"objective": {"forget": {"kind": "npo", "beta": 0.1}, "retain": {"kind": "hidden", "read_layer": 7}}},
    "simnpo": {"objective": {"forget": {"kind": "simnpo", "beta": 4.5, "gamma": 0.5}}},
    "dpo": {"objective": {"forget": {"kind": "dpo", "preferred": "alternative"}}},
    "wtnpo": {"objective": {"forget": {"kind": "wtnpo", "beta": 2, "alpha": 1}}},
    "satimp": {"objective": {"forget": {"kind": "satimp", "beta1": 5, "beta2": 1}}},
    "invariance": {"objective": {"forget": {"kind": "ceu"}, "invariance": {"weight": 0.2, "path": "arithmetic.jsonl"}}},
    "rmu": {"objective": {"forget": {"kind": "rmu", "coefficient": 6.5}}, "prompt": {"template": "chat"}},
    "output": {"output": "/data/runs", "tracking": {"uri": "http://mlflow:5000"}, "sweep": {"max_concurrent": 2}},
}


@pytest.mark.parametrize("name", KINDS)
def test_json_round_trip(name: str, tmp_path: Path) -> None:
    recipe = Recipe.parse(KINDS[name])
    text = recipe.model_dump_json()
    assert Recipe.model_validate_json(text) == recipe
    assert Recipe.parse(recipe.model_dump(mode="json")) == recipe
    as_yaml = tmp_path / "recipe.yaml"
    as_yaml.write_text(text)  # JSON is YAML
    assert Recipe.parse(read_recipe_file(as_yaml)) == recipe


def test_merge_lays_fields_over_fields() -> None:
    below = {"seed": 1, "train": {"epochs": 3, "batch_size": 8}}
    above = {"train": {"epochs": 5}, "name": "x"}
    assert merge(below, above) == {"seed": 1, "name": "x", "train": {"epochs": 5, "batch_size": 8}}
    assert below == {"seed": 1, "train": {"epochs": 3, "batch_size": 8}}
    assert above == {"train": {"epochs": 5}, "name": "x"}


def test_merge_drops_the_fields_of_another_kind() -> None:
    below = {"objective": {"forget": {"kind": "npo", "beta": 0.2, "weight": 5.0}, "gate_weight": 2.0}}
    switched = merge(below, {"objective": {"forget": {"kind": "gd"}}})
    assert switched == {"objective": {"forget": {"kind": "gd"}, "gate_weight": 2.0}}
    same = merge(below, {"objective": {"forget": {"kind": "npo", "weight": 7.0}}})
    assert same["objective"]["forget"] == {"kind": "npo", "beta": 0.2, "weight": 7.0}
    assert merge({"adapter": {"layers": [1, 2]}}, {"adapter": {"layers": [3]}}) == {"adapter": {"layers": [3]}}
    assert merge({"adapter": {"layers": [1]}}, {"adapter": {"layers": None}}) == {"adapter": {"layers": None}}


def test_replace_validates_again_and_leaves_the_original() -> None:
    recipe = Recipe.parse(KINDS["npo"])
    switched = recipe.replace({"objective": {"forget": {"kind": "gd"}}, "adapter": {"rank": 8}})
    assert switched.objective.forget.kind == "gd"
    assert switched.objective.retain == recipe.objective.retain
    assert (switched.adapter.rank, recipe.adapter.rank) == (8, 4)
    with pytest.raises(ConfigError, match=r"recipe `demo` with \{'adapter': \{'rank': 0\}\} is not a valid recipe"):
        recipe.replace({"adapter": {"rank": 0}})


def test_a_path_alone_switches_the_source() -> None:
    assert Recipe.parse({"data": {"path": "/tofu"}}).data == TofuData(path="/tofu")
    assert Recipe.parse({"data": {}}).data.kind == "testbed"


@pytest.mark.parametrize("field", ["forget", "retain", "holdout"])
@pytest.mark.parametrize("path", ["../other.jsonl", "/etc/passwd", "rows/../../other.jsonl", "..", "", "."])
def test_paths_that_leave_their_folder(field: str, path: str) -> None:
    with pytest.raises(ConfigError, match=rf"`data.jsonl.{field}`: must be a name inside the data folder.*, got '"):
        Recipe.parse({"data": {"kind": "jsonl", "path": "/data", field: path}})


def test_paths_that_stay() -> None:
    assert JsonlData(path="/data", forget="2024/forget.jsonl").forget == "2024/forget.jsonl"


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(32, (20, 25, 31)), (16, (10, 12, 15)), (8, (5, 6, 7)), (28, (17, 21, 27)), (2, (1,)), (1, (0,))],
)
def test_relative_depths_fit_every_model(num_layers: int, expected: tuple[int, ...]) -> None:
    assert AdapterConfig().resolve_layers(num_layers) == expected


def test_named_layers_win_over_relative_depths() -> None:
    assert AdapterConfig(layers=(1, 5), relative_depths=(0.5,)).resolve_layers(8) == (1, 5)


def test_a_format_has_a_name_and_training_is_on_none() -> None:
    models: dict[str | None, dict[str, Any]] = {
        None: {},
        "int8 (torchao, weight only, one scale a row)": {"quantization": "int8"},
        "int4 (torchao, weight only, groups of 32)": {"quantization": "int4"},
        "nf4 (blocks of 64)": {"decomposition": "nf4", "decomposition_rank": 3},
        "lowrank_nf4 (rank side/64, 40 rounds, blocks of 64)": {"decomposition": "lowrank_nf4"},
        "lowrank_nf4 (rank 3, 5 rounds, blocks of 64)": {
            "decomposition": "lowrank_nf4",
            "decomposition_rank": 3,
            "decomposition_rounds": 5,
        },
    }
    for name, values in models.items():
        model = Recipe.parse({"model": {"path": "p", **values}}).model
        assert (model.variant.name if model.variant else None) == name
        assert model.full_precision.variant is None
        assert model.full_precision.path == "p"


def test_registered_model_is_named_after_the_request() -> None:
    recipe = Recipe(request=RequestConfig(id="gdpr-17"))
    assert recipe.registered_model == "grun-gdpr-17"
    assert recipe.replace({"tracking": {"registered_model": "ours"}}).registered_model == "ours"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"a recipe must be YAML, got '.*recipe.yaml': "),
        ("- a\n- b", r"must hold sections and fields, got a list in '.*recipe.yaml'"),
        ("!!python/object/apply:os.getcwd []", r"a recipe must be YAML"),
        (b"\xff\xfe\xff", r"a recipe must be YAML, got '.*recipe.yaml': "),
    ],
)
def test_unreadable_recipe(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe_file(path)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a readable file, got '.*none.yaml' \(No such file or directory\); check"):
        read_recipe_file(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_recipe_file(tmp_path / "empty.yaml") == {}


def test_reading_a_recipe_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'ray', 'mlflow', 'deepspeed', 'pyreft'}"
    code = f"import sys, grun.config, grun.requests, grun.errors; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_near_miss() -> None:
    assert near_miss("rnak", ["rank", "layers"]) == " (did you mean `rank`?)"
    assert near_miss("quux", ["rank", "layers"]) == ""
