"""The command line: which source wins, how values are read, what a mistake is told, and how a process ends."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grun import config
from grun.config import IdkConfig, InvarianceConfig, JsonlData, Mlp3GateConfig, NpoConfig, Recipe, TofuData
from grun.errors import ConfigError
from pipelines import cli
from pipelines.cli import next_step, parse_command

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.upper().startswith("GRUN_") or variable == "FORCE_COLOR":
            monkeypatch.delenv(variable)


def recipe(*argv: str, **options: Any) -> Recipe:
    return parse_command("Do it.", argv, **options)[0]


def recipe_file(folder: Path, text: str) -> str:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def schema_paths(definition: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path and docstring of every leaf, from the JSON schema that pydantic makes."""
    for name, field in definition["properties"].items():
        references = [entry["$ref"] for entry in [field, *field.get("oneOf", []), *field.get("anyOf", [])] if "$ref" in entry]
        for reference in references:
            yield from schema_paths(schema["$defs"][reference.rsplit("/", 1)[-1]], schema, f"{prefix}{name}.")
        if not references:
            yield f"{prefix}{name}", field.get("description", "")


def leaves() -> list[tuple[str, str]]:
    schema = Recipe.model_json_schema()
    return list(schema_paths(schema, schema))


class TestPrecedence:
    def test_no_argument_gives_the_defaults(self) -> None:
        assert recipe() == Recipe()

    def test_command_line_over_environment_over_file_over_defaults(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = recipe_file(tmp_path, "train: {epochs: 2, batch_size: 2, warmup_steps: 2}")
        monkeypatch.setenv("GRUN_TRAIN__EPOCHS", "3")
        monkeypatch.setenv("grun_train__batch_size", "6")
        train = recipe("--recipe", file, "--train.epochs", "4").train
        assert (train.epochs, train.batch_size, train.warmup_steps) == (4, 6, 2)
        assert train.learning_rate == Recipe().train.learning_rate

    def test_underscores_within_a_name_are_kept_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GRUN_MODEL__TAUGHT__HIDDEN_SIZE", "64")
        assert recipe().model.taught.hidden_size == 64

    def test_default_recipe_yields_to_a_given_one(self, tmp_path: Path) -> None:
        default = Path(recipe_file(tmp_path, "seed: 5"))
        given = tmp_path / "given.yaml"
        given.write_text("name: given", encoding="utf-8")
        assert recipe(default_recipe=default).seed == 5
        assert recipe("--recipe", str(given), default_recipe=default) == Recipe(name="given")

    def test_a_shipped_recipe_is_found_by_its_bare_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "shipped_small.yaml").write_text("seed: 9", encoding="utf-8")
        monkeypatch.setattr(cli, "RECIPES", tmp_path)
        assert recipe("--recipe", "shipped_small").seed == 9
        assert recipe("--recipe", "shipped_small.yaml").seed == 9
        with pytest.raises(ConfigError, match=r"got 'shiped_small' \(did you mean `shipped_small`\?\)"):
            recipe("--recipe", "shiped_small")

    def test_rules_across_fields_are_checked_once_all_sources_are_in(self, tmp_path: Path) -> None:
        file = recipe_file(tmp_path, "train: {num_workers: 3}")  # alone it does not divide the batch
        assert recipe("--recipe", file, "--train.batch_size", "9").train.batch_size == 9


class TestValues:
    @pytest.mark.parametrize("text", ["007", "1e3", "2024-01-01", "true", "none", "12:30"])
    def test_text_fields_keep_the_text(self, text: str) -> None:
        assert recipe("--request.reason", text).request.reason == text

    def test_text_in_names_paths_and_optional_fields(self) -> None:
        given = recipe("--request.id", "007", "--output", "2024", "--model.revision", "1e3", "--name", "no")
        assert (given.request.id, given.output, given.model.revision, given.name) == ("007", Path("2024"), "1e3", "no")

    def test_text_from_the_environment_is_kept_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GRUN_REQUEST__ID", "0123")
        assert recipe().request.id == "0123"

    @pytest.mark.parametrize("text", ["none", "null", "None"])
    def test_none_clears_a_field_that_may_be_unset(self, tmp_path: Path, text: str) -> None:
        file = recipe_file(tmp_path, "{model: {path: somewhere}, adapter: {layers: [1], gate_threshold: 0.2}}")
        given = recipe("--recipe", file, "--model.path", text, "--adapter.layers", text, "--adapter.gate_threshold", text)
        assert (given.model.path, given.adapter.layers, given.adapter.gate_threshold) == (None, None, None)

    def test_none_is_a_word_where_it_is_a_choice(self) -> None:
        assert recipe("--sweep.scheduler", "none").sweep.scheduler == "none"

    @pytest.mark.parametrize(("text", "layers"), [("[3,5]", (3, 5)), ("3,5", (3, 5)), ("3, 5", (3, 5)), ("3", (3,))])
    def test_lists_with_or_without_brackets(self, text: str, layers: tuple[int, ...]) -> None:
        assert recipe("--adapter.layers", text).adapter.layers == layers

    def test_numbers_and_booleans(self) -> None:
        train = recipe("--train.learning_rate", "4e-4", "--train.use_gpu=true", "--train.epochs=7").train
        assert (train.learning_rate, train.use_gpu, train.epochs) == (4e-4, True, 7)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("train.epochs", "[3"), ("train.epochs", "2024-13-45"), ("train.epochs", "!!bool x"), ("adapter.layers", "[3")],
    )
    def test_what_yaml_cannot_read_is_told_as_it_was_typed(self, option: str, value: str) -> None:
        kind = "list" if option == "adapter.layers" else "valid integer"
        with pytest.raises(ConfigError) as caught:
            recipe(f"--{option}", value)
        assert f"`{option}`: must be a {kind}" in str(caught.value)
        assert f"got {value!r}" in str(caught.value)


class TestKinds:
    def test_another_kind_drops_the_fields_of_the_one_in_the_file(self, tmp_path: Path) -> None:
        file = recipe_file(tmp_path, "objective: {gate_weight: 3, forget: {kind: idk, weight: 5}}")
        given = recipe("--recipe", file, "--objective.forget.kind", "npo").objective
        assert given.forget == NpoConfig()
        assert given.gate_weight == 3

    def test_the_same_kind_keeps_them(self, tmp_path: Path) -> None:
        file = recipe_file(tmp_path, "objective: {forget: {kind: npo, weight: 5}}")
        given = recipe("--recipe", file, "--objective.forget.kind", "npo", "--objective.forget.beta", "0.3")
        assert given.objective.forget == NpoConfig(weight=5, beta=0.3)

    def test_a_field_alone_is_laid_over_the_default_kind(self) -> None:
        assert recipe("--objective.forget.weight", "2").objective.forget == IdkConfig(weight=2)
        assert recipe("--data.holdout_frac", "0.2").data == config.TestbedData(holdout_frac=0.2)

    def test_a_kind_without_fields(self) -> None:
        assert recipe("--adapter.gate.kind", "mlp_3").adapter.gate == Mlp3GateConfig()

    def test_a_path_alone_means_a_tofu_folder(self) -> None:
        assert recipe("--data.path", "x", "--data.forget", "forget01").data == TofuData(path="x", forget="forget01")

    def test_a_path_does_not_change_a_kind_that_has_one(self, tmp_path: Path) -> None:
        file = recipe_file(tmp_path, "data: {kind: jsonl, path: x, retain: keep.jsonl}")
        assert recipe("--recipe", file, "--data.path", "y").data == JsonlData(path="y", retain="keep.jsonl")

    def test_a_kind_that_the_file_implies_counts_as_said(self, tmp_path: Path) -> None:
        file = recipe_file(tmp_path, "data: {path: x, forget: forget10}")
        assert recipe("--recipe", file, "--data.kind", "tofu").data == TofuData(path="x", forget="forget10")

    def test_a_section_that_may_be_unset_is_there_once_a_field_of_it_is(self) -> None:
        assert recipe("--objective.forget.kind", "simnpo").objective.invariance is None
        given = recipe("--objective.invariance.weight", "0.2").objective.invariance
        assert given == InvarianceConfig(weight=0.2, reading="logits", path=None)

    def test_a_field_of_another_kind_is_refused_with_the_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        message = "`objective.forget.beta` is a field of kind npo or simnpo or .*, got it with kind idk; .*`--objective.forget.kind npo`"
        with pytest.raises(ConfigError, match=message):
            recipe("--objective.forget.beta", "0.2")
        monkeypatch.setenv("GRUN_OBJECTIVE__FORGET__BETA", "0.2")
        with pytest.raises(ConfigError, match=message):
            recipe()

    def test_an_unknown_kind_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match=r"`adapter.gate`.*'mlp_4'.*'linear', 'mlp_3', 'mlp_5'"):
            recipe("--adapter.gate.kind", "mlp_4")


class TestMistakes:
    def test_near_miss_on_the_command_line(self) -> None:
        for argv in (["--trian.epochs", "5"], ["--trian.epochs=5"]):
            with pytest.raises(ConfigError, match=r"unknown option `--trian.epochs` \(did you mean `--train.epochs`\?\)"):
                recipe(*argv)

    def test_near_miss_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GRUN_TRAIN__EPOCH", "5")
        with pytest.raises(ConfigError, match=r"got `GRUN_TRAIN__EPOCH` \(did you mean `GRUN_TRAIN__EPOCHS`\?\)"):
            recipe()

    def test_near_miss_in_a_file(self, tmp_path: Path) -> None:
        file = recipe_file(tmp_path, "{trian: {epochs: 5}, train: {epochz: 5}}")
        with pytest.raises(ConfigError) as caught:
            recipe("--recipe", file)
        assert "unknown key `trian` in the top level (did you mean `train`?)" in str(caught.value)
        assert "unknown key `epochz` in train (did you mean `epochs`?)" in str(caught.value)
        assert file in str(caught.value)

    def test_two_spellings_of_one_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GRUN_SEED", "1")
        monkeypatch.setenv("grun_seed", "2")
        with pytest.raises(ConfigError, match="`GRUN_SEED` in two spellings"):
            recipe()

    def test_the_message_names_the_sources_that_took_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = recipe_file(tmp_path, "seed: 1")
        monkeypatch.setenv("GRUN_TRAIN__EPOCHS", "0")
        with pytest.raises(ConfigError, match=r"^the environment is not a valid recipe: `train.epochs`.*got 0"):
            recipe()
        with pytest.raises(ConfigError, match=r"^recipe '.*my.yaml' with the environment with the command line is not"):
            recipe("--recipe", file, "--seed", "2")

    def test_no_abbreviations(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown option `--train.epoch` "):
            recipe("--train.epoch", "5")

    def test_a_value_without_an_option_and_an_option_without_a_value(self) -> None:
        with pytest.raises(ConfigError, match=r"got '5' alone.* a list as 3,5"):
            recipe("--adapter.layers", "3", "5")
        with pytest.raises(ConfigError, match=r"--train\.epochs: expected one argument"):
            recipe("--train.epochs")

    @pytest.mark.parametrize("text", ["data: 5", "train:", "objective: {forget: [1]}", "5: x", "data: {kind: [tofu], path: x}"])
    def test_a_file_of_the_wrong_shape(self, tmp_path: Path, text: str) -> None:
        file = recipe_file(tmp_path, text)
        with pytest.raises(ConfigError, match="is not a valid recipe"):
            recipe("--recipe", file)


class TestOwnOptions:
    @staticmethod
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--adapter", help="a folder")
        parser.add_argument("--rollback", action="store_true")

    def test_they_come_back_apart_from_the_fields(self) -> None:
        given, own = parse_command("Do it.", ["--adapter", "x", "--adapter.rank", "2", "--seed", "3"], extra=self.add)
        assert vars(own) == {"adapter": "x", "rollback": False, "again": "--adapter.rank 2 --seed 3"}
        assert (given.adapter.rank, given.seed) == (2, 3)

    def test_a_next_step_is_about_the_same_recipe(self, tmp_path: Path) -> None:
        file = tmp_path / "my recipe.yaml"
        file.write_text("seed: 3\n", encoding="utf-8")
        given, own = parse_command("Do it.", ["--recipe", str(file), "--request.reason", "it's due"], extra=self.add)
        step = next_step("promote", own.again, "judge it", "--rollback")
        command, purpose = step.split("    ")
        assert purpose == "judge it"
        assert shlex.split(command)[:3] == ["python", "pipelines/promote.py", "--rollback"]
        assert parse_command("Do it.", shlex.split(command)[3:], extra=self.add)[0] == given

    def test_they_are_near_misses_too(self) -> None:
        with pytest.raises(ConfigError, match=r"did you mean `--rollback`"):
            recipe("--rolback", extra=self.add)

    def test_a_verb_may_offer_some_sections_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert recipe("--train.epochs", "3", "--seed", "4", sections=("train",)).train.epochs == 3
        with pytest.raises(ConfigError, match="unknown option `--sweep"):
            recipe("--sweep.num_trials", "3", sections=("train",))
        monkeypatch.setenv("GRUN_SWEEP__NUM_TRIALS", "3")  # environment and files speak the whole schema all the same
        assert recipe(sections=("train",)).sweep.num_trials == 3


class TestHelp:
    @staticmethod
    def text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int = 100) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as stop:
            parse_command("Do 100 % of it.", ["--help"])
        assert stop.value.code == 0
        return capsys.readouterr().out

    def test_every_leaf_has_an_option_with_its_docstring_and_default(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options: dict[str, str] = {}
        name = ""
        for line in self.text(monkeypatch, capsys).splitlines():
            if line.startswith("  -"):
                name = line.split()[0].strip("-,")
            elif line.startswith("        "):
                options[name] = f"{options.get(name, '')} {line.strip()}"
        del options["recipe"], options["h"]
        assert set(options) == {path for path, _ in leaves()}
        for path, docstring in leaves():
            assert " ".join(docstring.split()) in options[path], path
            assert "default: " in options[path] or "[required]" in options[path], path
            assert path.endswith(".kind") or docstring, path

    def test_entries_in_full(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        text = self.text(monkeypatch, capsys, columns=200)
        for entry in (
            "Do 100 % of it.",
            "  --train.epochs INT\n        Passes over the forget set. [default: 60]\n",
            "; `none` trains all to the end. [one of asha, none; default: asha]\n",
            "  --adapter.relative_depths LIST\n",
            "[default: 0.625,0.78125,0.96875]\n",
            "  --objective.forget.weight NUMBER\n        kind gd, idk, dpo, negative, rmu, undial, wga, tnpo, wtnpo, satimp, ceu: Weight of the term. [default: 1.0]\n        kind npo: ",
            "  --objective.retain.weight NUMBER\n        Weight of the term. [default: 1.0]\n",
            "        kind linear: One hyperplane: u(h) = w h + b.\n",
            "[default: mlp_3]\n",
        ):
            assert entry in text
        assert text.index("\nobjective:\n") < text.index("\nobjective.forget:\n")

    @pytest.mark.parametrize("columns", [60, 100])
    def test_lines_fit_the_terminal(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
    ) -> None:
        long = [line for line in self.text(monkeypatch, capsys, columns).splitlines() if len(line) > columns]
        assert [line for line in long if not line.startswith("usage:")] == []


SCRIPT = """
import os, signal, sys
from grun.errors import DataError
from pipelines.cli import parse_command
from pipelines.running import run_command

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()

def main():
    parse_command("Do it.")
    {body}
    return 0

run_command(main)
"""


def run(folder: Path, body: str = "pass", *argv: str) -> subprocess.CompletedProcess[str]:
    script = folder / "verb.py"
    script.write_text(SCRIPT.format(body=body), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return subprocess.run([sys.executable, str(script), *argv], capture_output=True, text=True, env=environment, check=False)


class TestEndOfAProcess:
    def test_done(self, tmp_path: Path) -> None:
        ended = run(tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")

    def test_a_verb_has_statuses_of_its_own(self, tmp_path: Path) -> None:
        assert run(tmp_path, "return 3").returncode == 3

    def test_an_unknown_option(self, tmp_path: Path) -> None:
        ended = run(tmp_path, "pass", "--trian.epochs", "5")
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: unknown option `--trian.epochs` (did you mean `--train.epochs`?)")
        assert ended.stderr.count("\n") == 1

    def test_our_errors_are_one_line_of_literal_text(self, tmp_path: Path) -> None:
        message = "[bold]a record[/bold] must :key: " + "x" * 200
        ended = run(tmp_path, f"raise DataError({message!r})")
        assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {message}\n")

    def test_a_defect_shows_its_traceback(self, tmp_path: Path) -> None:
        ended = run(tmp_path, "raise ZeroDivisionError('oh')")
        assert ended.returncode == 1
        assert "Traceback" in ended.stderr
        assert "ZeroDivisionError: oh\nerror: this is a defect of the program" in ended.stderr

    @pytest.mark.parametrize("body", ["raise KeyboardInterrupt", "stop()", "sys.exit(signal.SIGTERM)"])
    def test_interruptions(self, tmp_path: Path, body: str) -> None:
        ended = run(tmp_path, body)
        assert ended.returncode == 130
        assert ended.stderr == "interrupted; the same command continues where this one stopped\n"

    def test_a_broken_socket_is_a_defect(self, tmp_path: Path) -> None:
        assert run(tmp_path, "raise BrokenPipeError('socket')").returncode == 1

    @pytest.mark.parametrize(("body", "argv"), [("pass", ["--help"]), ("console.summary('done', {})", [])])
    def test_a_reader_that_went_away_is_no_defect(self, tmp_path: Path, body: str, argv: list[str]) -> None:
        script = tmp_path / "verb.py"
        script.write_text(f"from pipelines import console\n{SCRIPT.format(body=body)}", encoding="utf-8")
        reader, writer = os.pipe()
        os.close(reader)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("PYTHONUNBUFFERED", None)  # only what is left in a buffer can fail at exit
        command = [sys.executable, str(script), *argv]
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, check=False)
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")

    def test_help_and_mistakes_load_no_heavy_library(self, tmp_path: Path) -> None:
        check = "import atexit\natexit.register(lambda: print(sorted({'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules))))"
        script = tmp_path / "verb.py"
        script.write_text(f"import sys\n{check}\n{SCRIPT.format(body='pass')}", encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for argv, status in ((["--help"], 0), (["--wrong", "1"], 2)):
            ended = subprocess.run(
                [sys.executable, str(script), *argv], capture_output=True, text=True, env=environment, check=False
            )
            assert ended.returncode == status
            assert ended.stdout.endswith("[]\n")
