"""Bad input: one clear message and exit status 2, before a cluster starts or anything is trained, and nothing left behind."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import ray

from pipelines import prepare
from tests.pipelines.bad_input.conftest import FORGET, RETAIN, VERBS, Verb, question
from tests.pipelines.processes import Ended
from tune_spaces import SPACES, Space, choice

ROOT = Path(__file__).parents[3]


class TestData:
    @pytest.mark.parametrize(
        ("line", "rule"),
        [
            ('{"question": "Who', "forget.jsonl:4: every line must hold one JSON object, got malformed JSON"),
            ("", "forget.jsonl:4: every line must hold one JSON object, got an empty line; remove it"),
            ("[]", "forget.jsonl:4: a record must be a JSON object, got list; one object a line"),
            ({"question": "Who?"}, "forget.jsonl:4: a record needs `question` and `answer`"),
            ({"question": "Who?", "answre": "She."}, "`answer` is missing (is it `answre`, misspelt?)"),
            ({"question": "Who?", "answer": " "}, "forget.jsonl:4: `answer` must be a non-empty text, got ' '; write it"),
        ],
        ids=["malformed", "empty", "no object", "missing field", "misspelt field", "empty field"],
    )
    def test_a_bad_line_is_named_by_file_and_number(
        self, run: Verb, data: Callable[..., list[object]], line: object, rule: str
    ) -> None:
        assert rule in run("train", *data(forget=[*FORGET, line])).message

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_verb_refuses_an_empty_forget_set(self, run: Verb, data: Callable[..., list[object]], verb: str) -> None:
        message = run(verb, *data(forget=[])).message
        assert "must hold at least one record, got the empty file" in message
        assert "forget.jsonl" in message

    def test_forget_and_retain_overlap_whatever_case_and_spacing(self, run: Verb, data: Callable[..., list[object]]) -> None:
        again = {name: f" {value.upper()} " for name, value in FORGET[1].items()}
        message = run("train", *data(retain=[*RETAIN, again])).message
        assert "forget and " in message
        assert "must not overlap, got 1 shared record(s)" in message
        assert "remove them from one of the two" in message
        assert FORGET[1]["question"] not in message  # what is to be forgotten is not printed

    def test_a_prompt_longer_than_the_context(self, run: Verb, data: Callable[..., list[object]], base: Path) -> None:
        long = {"question": "Who" + " really" * 200 + "?", "answer": "Ilva."}
        message = run("train", *data(forget=[*FORGET, long]), "--model.path", base).message
        assert "must fit the context of 128 tokens, got " in message
        assert "shorten the record" in message

    def test_a_wrong_answer_that_only_evaluation_reads_and_that_does_not_fit(
        self, run: Verb, data: Callable[..., list[object]], base: Path
    ) -> None:
        long = {**question("Ilva", 9), "perturbed_answer": ["Ilva paints" + " really" * 200]}
        message = run("train", *data(forget=[*FORGET, long]), "--model.path", base).message
        assert "must fit the context of 128 tokens, got " in message

    def test_a_prompt_longer_than_the_context_of_a_model_that_is_to_be_taught(
        self, run: Verb, data: Callable[..., list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def inline(_recipe: object, tasks: Iterable[Any], **_options: object) -> list[object]:
            return [task.function(**task.arguments, progress=tmp_path / "progress") for task in tasks]

        @contextmanager
        def no_cluster(_recipe: object) -> Iterator[None]:
            yield

        monkeypatch.setattr(prepare, "run_tasks", inline)
        monkeypatch.setattr(prepare, "connected", no_cluster)
        monkeypatch.setattr(prepare, "check_resources", lambda _recipe: None)
        message = run("prepare", *data(), "--model.taught.context", "8").message
        assert "must fit the context of 8 tokens" in message
        assert "`model.taught.context`" in message


class TestObjective:
    @pytest.mark.parametrize("verb", ["prepare", "train", "sweep"])
    @pytest.mark.parametrize(
        "options",
        [
            ("--objective.forget.kind", "negative"),
            ("--objective.forget.kind", "dpo", "--objective.forget.preferred", "alternative"),
        ],
        ids=["negative", "altpo"],
    )
    def test_records_without_the_answers_that_it_teaches(
        self, run: Verb, data: Callable[..., list[object]], verb: str, options: tuple[str, ...]
    ) -> None:
        some = {**question("Ilva", 8), "alternative_answers": ["Ilva 8 sings."]}
        # wrong answers are what the truth ratio is scored on, and no substitute
        wrong = [{**record, "perturbed_answer": ["Ilva sings."]} for record in FORGET]
        message = run(verb, *data(forget=[*wrong, some]), *options).message
        assert "every record to forget must bring some, got 3 of 4 without (the first: digest " in message
        assert "add `alternative_answers` to these records, or choose another objective" in message
        assert FORGET[0]["question"] not in message

    def test_a_space_with_an_objective_that_the_records_have_no_answers_for(
        self, run: Verb, data: Callable[..., list[object]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SPACES, "mine", Space("mine", "terms", {"objective.forget.kind": choice("idk", "negative")}))
        message = run("sweep", *data(), "--sweep.space", "mine").message
        assert "`objective.forget.kind: negative` teaches alternative answers" in message

    def test_a_space_that_varies_what_is_read_before_it(self, run: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(SPACES, "mine", Space("mine", "files", {"objective.invariance.path": choice("a.jsonl", "b.jsonl")}))
        message = run("sweep", "--sweep.space", "mine").message
        assert "may vary only what is not prepared before it, got `objective.invariance.path`" in message
        assert "set it in the recipe" in message

    def test_an_environment_that_is_not_there(self, run: Verb, data: Callable[..., list[object]], tmp_path: Path) -> None:
        message = run("train", *data(), "--objective.invariance.path", tmp_path / "nowhere.jsonl").message
        assert "a data file must be readable, got " in message
        assert "nowhere.jsonl" in message

    def test_a_second_derivative_through_a_sharded_base(self, run: Verb, data: Callable[..., list[object]]) -> None:
        message = run("train", *data(), "--objective.invariance.reading", "parameters").message
        assert "differentiates twice, which a base sharded by ZeRO-3 cannot" in message
        assert "set `train.engine: torch`" in message


class TestModel:
    def test_a_base_folder_that_is_missing(self, run: Verb, tmp_path: Path) -> None:
        message = run("train", "--model.path", tmp_path / "nowhere").message
        assert (
            f"`model.path` must be an existing model folder, got '{tmp_path}/nowhere', which is not there; check the path"
            in message
        )

    def test_a_folder_that_holds_no_model(self, run: Verb, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "without a config.json; check the path" in run("train", "--model.path", tmp_path / "empty").message

    def test_a_tokenizer_without_a_pad_token(self, run: Verb, data: Callable[..., list[object]], base: Path) -> None:
        config = base / "tokenizer_config.json"
        values = json.loads(config.read_text(encoding="utf-8"))
        del values["pad_token"]
        config.write_text(json.dumps(values), encoding="utf-8")
        message = run("train", *data(), "--model.path", base).message
        assert "the tokenizer must have a pad token, got one without" in message
        assert "set `model.pad_token`" in message

    def test_a_pad_token_that_the_vocabulary_lacks(self, run: Verb, base: Path) -> None:
        message = run("train", "--model.path", base, "--model.pad_token", "<pad>").message
        assert "`model.pad_token` must be in the tokenizer's vocabulary, got '<pad>'; name an existing token" in message

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("config.json", b"{"),
            ("config.json", b"[]"),
            ("config.json", b"\xff"),
            ("config.json", b"[" * 100_000),
            ("config.json", b'{"model_type": "nothing-known"}'),
            ("tokenizer.json", b"{"),
            ("tokenizer.json", b"{}"),
            ("tokenizer_config.json", b"{"),
            ("tokenizer_config.json", b"[]"),
            ("model.safetensors", b""),
            ("model.safetensors", b"\xff" * 100),
            ("model.safetensors", (2**40).to_bytes(8, "little") + b"{}"),
        ],
    )
    def test_a_base_with_a_damaged_file(
        self, run: Verb, data: Callable[..., list[object]], base: Path, name: str, content: bytes
    ) -> None:
        (base / name).write_bytes(content)
        options = [*data(), "--model.path", base, "--promotion.require_certificate", "false"]
        assert str(base) in run("train", *options, "--tracking.uri", f"sqlite:///{base}/nowhere/mlflow.db").message

    @pytest.mark.parametrize("verb", ["train", "sweep", "promote"])
    def test_nothing_is_trained_or_promoted_on_a_quantised_base(self, run: Verb, base: Path, verb: str) -> None:
        message = run(verb, "--model.path", base, "--model.decomposition", "nf4").message
        assert "trained and promoted on the full-precision base, got `model.decomposition: nf4`; leave it out" in message
        assert "`evaluate.py --model.decomposition nf4`" in message

    def test_a_base_in_two_formats(self, run: Verb, base: Path) -> None:
        ended = run("evaluate", "--model.path", base, "--model.decomposition", "nf4", "--model.quantization", "int4")
        assert "a base is stored in one format, got" in ended.message


class TestAdapterSettings:
    def test_layers_outside_the_model(self, run: Verb, base: Path) -> None:
        message = run("train", "--model.path", base, "--adapter.layers", "1,4,9").message
        assert "`adapter.layers` must lie in 0..3, the blocks of this base, got [4, 9]; name other blocks" in message

    def test_layers_outside_a_model_that_is_to_be_taught(self, run: Verb) -> None:
        assert "must lie in 0..7, the blocks of this base, got [8]" in run("train", "--adapter.layers", "8").message

    def test_a_rank_above_the_hidden_size(self, run: Verb, base: Path) -> None:
        message = run("train", "--model.path", base, "--adapter.rank", "33").message
        assert "`adapter.rank` must not exceed the hidden size, got rank 33 and hidden size 32; lower the rank" in message


class TestRecipeAndSpace:
    def test_an_unknown_key_with_its_near_miss(self, run: Verb, tmp_path: Path) -> None:
        file = tmp_path / "my.yaml"
        file.write_text("adapter: {rnak: 4}\n", encoding="utf-8")
        message = run("train", "--recipe", file).message
        assert f"recipe '{file}' with the command line is not a valid recipe: " in message
        assert message.endswith("unknown key `rnak` in adapter (did you mean `rank`?)")

    def test_an_unknown_space_with_its_near_miss(self, run: Verb) -> None:
        message = run("sweep", "--sweep.space", "layer_position").message
        assert "got 'layer_position' (did you mean `layer_positions`?)" in message

    def test_a_space_whose_path_no_recipe_has(self, run: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(SPACES, "mine", Space("mine", "a slip", {"adapter.rnak": choice(1, 2)}))
        message = run("sweep", "--sweep.space", "mine").message
        assert (
            "got `adapter.rnak` in space `mine`: adapter has no field `rnak` (did you mean `rank`?); correct the path" in message
        )


class TestMetrics:
    @pytest.mark.parametrize("verb", VERBS)
    def test_a_required_metric_that_there_will_not_be(
        self, run: Verb, data: Callable[..., list[object]], base: Path, verb: str
    ) -> None:
        forget = [{**row, "perturbed_answer": ["Nobody."]} for row in FORGET]
        options = [*data(forget=forget), "--model.path", base, "--evaluation.require", "forget_quality,privleak"]
        message = run(verb, *options).message
        assert "metrics in `evaluation.require` must be computable, got forget_quality, privleak, which are not" in message
        assert "`model.retain_path`" in message
        assert "`data.nonmembers`" in message

    def test_a_required_metric_with_its_near_miss(self, run: Verb, data: Callable[..., list[object]], base: Path) -> None:
        message = run("train", *data(), "--model.path", base, "--evaluation.require", "model_utilty").message
        assert "got `model_utilty` (did you mean `model_utility`?)" in message

    def test_retain_only_logs_that_are_none(
        self, run: Verb, data: Callable[..., list[object]], base: Path, tmp_path: Path
    ) -> None:
        options = [*data(), "--model.path", base, "--evaluation.retain_logs"]
        assert "`evaluation.retain_logs` must be a readable file" in run("train", *options, tmp_path / "none").message
        (tmp_path / "logs").write_text('{"schema_version": 2}\n', encoding="utf-8")
        message = run("train", *options, tmp_path / "logs").message
        assert f"{tmp_path}/logs:1: retain-only logs must be of schema version 1, got 2; make them again" in message

    def test_questions_that_are_none(self, run: Verb, data: Callable[..., list[object]], base: Path, tmp_path: Path) -> None:
        (tmp_path / "questions").write_text('{"question": "Who?", "choices": ["a"], "answer": 0}\n', encoding="utf-8")
        message = run("train", *data(), "--model.path", base, "--evaluation.multiple_choice", tmp_path / "questions").message
        assert f"{tmp_path}/questions:1: `choices` must be a list of 4 to 26 non-empty texts" in message

    def test_nonmembers_that_are_missing(self, run: Verb, data: Callable[..., list[object]], base: Path) -> None:
        message = run("train", *data(), "--model.path", base, "--data.nonmembers", "none.jsonl").message
        assert "a data file must be readable, got " in message


class TestOutput:
    @pytest.mark.parametrize("verb", VERBS)
    def test_an_output_folder_below_a_file(self, run: Verb, tmp_path: Path, verb: str) -> None:
        (tmp_path / "file").touch()
        message = run(verb, "--output", tmp_path / "file" / "output").message
        assert f"`output` must be a folder that can be written to, got '{tmp_path}/file/output' (Not a directory)" in message
        assert "choose another with `--output`" in message


class TestTracking:
    @pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "prepare"])
    def test_a_server_that_does_not_answer(self, run: Verb, data: Callable[..., list[object]], base: Path, verb: str) -> None:
        with socket.socket() as taken:  # bound and not listening: whoever connects is refused
            taken.bind(("127.0.0.1", 0))
            uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
            message = run(verb, *data(), "--model.path", base, "--tracking.uri", uri).message
        assert "MLflow must be able to open the tracking store" in message
        assert uri in message
        assert "check that `tracking.uri` is right, that the server is up" in message


def test_a_misspelt_attack_is_refused_before_anything_starts(run: Verb, data: Callable[..., list[object]], base: Path) -> None:
    message = run("evaluate", *data(), "--model.path", base, "--attacks", "paraphrase,format/typo").message
    assert "got 'format/typo' (did you mean `format/typos`?)" in message


class TestPromise:
    """A utility certificate that so few held-out records cannot give."""

    @pytest.mark.parametrize("verb", ["train", "sweep"])
    def test_too_few_records_for_what_is_to_be_promised(
        self, run: Verb, data: Callable[..., list[object]], base: Path, verb: str
    ) -> None:
        options = [*data(), "--model.path", base]
        message = run(verb, *options).message
        assert "to bound a rate by 0.03 at confidence 0.95 takes at least 99 records in each half of the holdout set" in message
        assert "raise `calibration.alpha`, or do without a certificate: `promotion.require_certificate: false`" in message
        assert "at least 29 records" in run(verb, *options, "--calibration.alpha", "0.1").message

    def test_a_promise_of_nothing_or_of_everything(self, run: Verb) -> None:
        assert "`calibration.alpha`: must be greater than 0, got 0" in run("train", "--calibration.alpha", "0").message
        assert "`calibration.delta`: must be less than 1, got 1" in run("train", "--calibration.delta", "1").message


class TestCluster:
    @pytest.mark.parametrize("verb", VERBS)
    def test_more_workers_than_the_cluster_has(
        self, run: Verb, data: Callable[..., list[object]], base: Path, verb: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ray, "init", lambda **_options: None)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
        options = ["--model.path", base, "--promotion.require_certificate", "false"]
        message = run(verb, *data(), *options, "--train.num_workers", "4").message
        assert "the cluster must hold all workers at once, got 4 worker(s) that need 4 CPU(s) and 2 in the cluster" in message
        assert "lower `train.num_workers`, or add nodes" in message

    def test_a_cluster_that_cannot_be_reached(
        self, run: Verb, data: Callable[..., list[object]], base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(**_options: object) -> NoReturn:
            raise ConnectionError("nobody there")

        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        monkeypatch.setattr(ray, "init", refuse)
        message = run("train", *data(), "--model.path", base, "--promotion.require_certificate", "false").message
        assert "the cluster at RAY_ADDRESS='127.0.0.1:1' must be reachable, got ConnectionError: nobody there" in message


class TestProcess:
    """The same as a user sees it: a process of its own."""

    @staticmethod
    def run(*command: object, folder: Path) -> Ended:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GRUN_OUTPUT": str(folder / "output")},
        )
        assert not (folder / "output").exists()
        return Ended(done.returncode, done.stdout, done.stderr)

    def test_an_unknown_option(self, tmp_path: Path) -> None:
        ended = self.run("pipelines/train.py", "--train.epoch", "3", folder=tmp_path)
        assert "unknown option `--train.epoch` (did you mean `--train.epochs`?)" in ended.message
        assert ended.out == ""

    def test_data_that_is_not_there(self, tmp_path: Path) -> None:
        ended = self.run("pipelines/prepare.py", "--data.path", tmp_path / "nowhere", folder=tmp_path)
        assert "`data.path` must be the folder of the TOFU files" in ended.message
        assert ended.out == ""

    @pytest.mark.slow
    def test_more_workers_than_a_real_cluster_has(self, tmp_path: Path) -> None:
        ended = self.run("pipelines/train.py", "--cluster.num_cpus", "1", folder=tmp_path)
        assert "got 2 worker(s) that need 2 CPU(s) and 1 in the cluster" in ended.message
