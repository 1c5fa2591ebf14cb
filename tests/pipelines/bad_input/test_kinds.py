"""A table of the kinds of bad input that need no model: whatever it is, one message with rule, value and remedy, and nothing else."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.pipelines.bad_input.conftest import FORGET, RETAIN, Verb

LEAST_KINDS = 60

GOOD = json.dumps(FORGET[0])


@dataclass(frozen=True)
class Kind:
    """A kind of bad input."""

    name: str
    words: tuple[str, ...]
    """What the message has to say; every `{tmp}` is the folder of the test."""
    verb: str = "prepare"
    arguments: tuple[str, ...] = ()
    files: dict[str, bytes | str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def recipe(name: str, content: bytes | str, *words: str) -> Kind:
    return Kind(name, words, "train", ("--recipe", "{tmp}/my.yaml"), {"my.yaml": content})


def options(name: str, arguments: str, *words: str, verb: str = "train") -> Kind:
    return Kind(name, words, verb, tuple(arguments.split(" ")))


def line(name: str, content: bytes | str, *words: str) -> Kind:
    """A second line of `forget.jsonl`, after a good one."""
    second = content.encode() if isinstance(content, str) else content
    retain = "".join(f"{json.dumps(record)}\n" for record in RETAIN)
    files: dict[str, bytes | str] = {"data/forget.jsonl": GOOD.encode() + b"\n" + second + b"\n", "data/retain.jsonl": retain}
    return Kind(name, words, "prepare", ("--data.kind", "jsonl", "--data.path", "{tmp}/data"), files)


def asked(name: str, content: str, *words: str, identity: str = "--request.id r1 --request.reason asked") -> Kind:
    """A request file."""
    arguments = ("add", *identity.split(), "--forget", "{tmp}/request.jsonl")
    return Kind(name, words, "request", arguments, {"request.jsonl": content})


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
HALF = '{"question": "Who?", "answer": "\\ud800"}'

KINDS = (
    # recipes, as files
    options(
        "recipe that is not there",
        "--recipe nowhere.yaml",
        "`--recipe` must be a file or one of the recipes",
        "got 'nowhere.yaml'",
    ),
    options("recipe with a near miss", "--recipe hardened_testbed", "(did you mean `hardened_testbed_cpu`?)"),
    recipe("recipe not in UTF-8", b"name: caf\xe9\n", "a recipe must be YAML, got '{tmp}/my.yaml': byte 9 is not UTF-8"),
    recipe("malformed YAML", "train: [1", "a recipe must be YAML", "did not find expected"),
    recipe("aliases", LAUGHS, "an anchor or alias in line 1; write the value out"),
    recipe("alias of itself", "name: &n [*n]", "an anchor or alias in line 1"),
    recipe("key twice", "seed: 1\nseed: 2\n", "the key 'seed' twice in line 1 and below; leave one"),
    recipe("tag of Python's", "name: !!python/object/apply:os.system [true]", "could not determine a constructor for the tag"),
    recipe("tag that does not fit", "seed: !!int x", "invalid literal for int()"),
    recipe("two documents", "---\nseed: 1\n---\nseed: 2\n", "expected a single document"),
    recipe("recipe too large", "#" * 300_000, "300000 bytes, and at most 262144 make sense here"),
    recipe("YAML nested too deeply", "[" * 500 + "]" * 500, "nested too deeply"),
    recipe("list in place of sections", "- seed\n", "a recipe must hold sections and fields, got a list"),
    recipe("text in place of a section", "train: fast\n", "`train`: ", "got 'fast'"),
    recipe("unknown section", "trian: {epochs: 1}\n", "unknown key `trian` in the top level (did you mean `train`?)"),
    recipe("unknown key", "adapter: {rnak: 4}\n", "unknown key `rnak` in adapter (did you mean `rank`?)"),
    recipe("key that is a number", "1: 2\n", "Keys should be strings"),
    recipe("word in place of a number", "train: {epochs: many}\n", "`train.epochs`: ", "got 'many'"),
    recipe("date in place of a number", "seed: 2026-11-28\n", "`seed`: must be a valid integer"),
    recipe("number that is none", "train: {learning_rate: .nan}\n", "`train.learning_rate`: must be a finite number, got nan"),
    recipe("number without end", f"seed: {'9' * 5000}\n", "a recipe must be YAML", "integer"),
    recipe("number of too many bits", f"seed: {'9' * 400}\n", "an integer of 1329 bits, and none has more than 1024"),
    recipe("negative count", "train: {batch_size: -4}\n", "`train.batch_size`: must be greater than 0, got -4"),
    recipe("share above one", "data: {holdout_frac: 2}\n", "holdout_frac`: must be less than 1, got 2"),
    recipe("unknown kind", "objective: {forget: {kind: npoo}}\n", "`objective.forget`: ", "'npo'"),
    recipe("id that climbs", "request: {id: ../../etc}\n", "`request.id`: must be 1 to 63 letters", "got '../../etc'"),
    recipe("name that is a path", "name: /tmp/x\n", "`name`: must be 1 to 63 letters"),
    recipe("name with a line break", 'name: "a\\n"\n', "`name`: must be 1 to 63 letters"),
    recipe("name of a ledger that hides", "ledger: {name: .hidden}\n", "`ledger.name`: must be 1 to 63 letters"),
    recipe(
        "file that climbs",
        "data: {kind: jsonl, path: x, forget: ../forget.jsonl}\n",
        "must be a name inside the data folder, without `..` or a leading `/`, got '../forget.jsonl'",
    ),
    recipe(
        "file with an absolute path",
        "data: {kind: jsonl, path: x, retain: /etc/passwd}\n",
        "must be a name inside the data folder",
    ),
    recipe(
        "zero byte in a folder", 'ledger: {vault: "a\\0b"}\n', "`ledger.vault` must hold no control characters, got 'a\\x00b'"
    ),
    recipe(
        "zero byte in a file", 'data: {kind: jsonl, path: x, forget: "a\\0b"}\n', "`data.forget` must hold no control characters"
    ),
    recipe(
        "model name that climbs", "serving: {registered_model: ../x}\n", "`serving.registered_model`: must be 1 to 200 letters"
    ),
    recipe(
        "model name that is a path",
        "tracking: {registered_model: a/b}\n",
        "`tracking.registered_model`: must be 1 to 200 letters",
    ),
    recipe("layers out of order", "adapter: {layers: [3, 1]}\n", "`layers` must be strictly increasing, got (3, 1); sort it"),
    recipe("no layers", "adapter: {layers: []}\n", "`adapter.layers`: must have at least 1 item"),
    # the command line and the environment
    options(
        "unknown option",
        "--train.epoch 3",
        "unknown option `--train.epoch` (did you mean `--train.epochs`?); `--help` lists all options",
    ),
    options("option without a value", "--train.epochs", "expected one argument; `--help` lists all options"),
    options("value without an option", "3", "every value must follow its option, got '3' alone"),
    options(
        "field of another kind",
        "--data.num_people 20 --data.kind jsonl --data.path x",
        "is a field of kind testbed, got it with kind jsonl",
    ),
    options("tag on the command line", "--train.epochs !!bool", "`train.epochs`: must be a valid integer"),
    Kind(
        "unknown variable",
        ("got `GRUN_TRAIN__EPOCH` (did you mean `GRUN_TRAIN__EPOCHS`?)",),
        environment={"GRUN_TRAIN__EPOCH": "3"},
    ),
    Kind(
        "variable in two spellings",
        ("a field must be set by one variable, got `GRUN_SEED` in two spellings; unset one",),
        environment={"GRUN_SEED": "1", "GRUN_seed": "2"},
    ),
    options(
        "unknown space", "--sweep.space layer_position", "got 'layer_position' (did you mean `layer_positions`?)", verb="sweep"
    ),
    options("nothing to promise", "--calibration.alpha 0", "`calibration.alpha`: must be greater than 0, got 0"),
    options("layers outside the model", "--adapter.layers 8", "must lie in 0..7, the blocks of this base, got [8]"),
    options(
        "server open to all",
        "--serving.host 0.0.0.0",
        "`serving.host` must be a loopback address where no key is set",
        verb="serve",
    ),
    options("port that is none", "--serving.port 70000", "`serving.port`: must be less than or equal to 65535", verb="serve"),
    # models and data
    options("model that is not there", "--model.path {tmp}/nowhere", "`model.path` must be an existing model folder"),
    Kind("folder without a model", ("without a config.json; check the path",), "train", ("--model.path", "{tmp}/m"), {"m/x": ""}),
    Kind(
        "file in place of the caches",
        ("prefix caches must be in a folder, got the file '{tmp}/out/cache'; move it away",),
        "cache",
        ("--output", "{tmp}/out"),
        {"out/cache": "hi"},
    ),
    options("data that are not there", "--data.kind jsonl --data.path {tmp}/nowhere", "`data.path` must be a folder"),
    Kind(
        "file in place of a folder",
        ("`data.path` must be a folder",),
        arguments=("--data.kind", "jsonl", "--data.path", "{tmp}/f"),
        files={"f": ""},
    ),
    options("TOFU that is not there", "--data.path {tmp}/nowhere", "`data.path` must be the folder of the TOFU files"),
    Kind(
        "folder that is not TOFU",
        ("set `--data.kind jsonl`",),
        arguments=("--data.path", "{tmp}/d"),
        files={"d/forget.jsonl": GOOD},
    ),
    Kind(
        "set that is not there",
        ("a data file must be readable, got '{tmp}/d/retain.jsonl' (No such file or directory); check the path",),
        arguments=("--data.kind", "jsonl", "--data.path", "{tmp}/d"),
        files={"d/forget.jsonl": GOOD},
    ),
    Kind(
        "empty set",
        ("must hold at least one record, got the empty file",),
        arguments=("--data.kind", "jsonl", "--data.path", "{tmp}/d"),
        files={"d/forget.jsonl": "", "d/retain.jsonl": GOOD},
    ),
    line("line not in UTF-8", b'{"question": "caf\xe9"}', "a data file must be UTF-8, got '{tmp}/data/forget.jsonl' (byte "),
    line("byte order mark", b"\xef\xbb\xbf" + GOOD.encode(), "forget.jsonl:2: every line must hold one JSON object", "BOM"),
    line("UTF-16", GOOD.encode("utf-16"), "a data file must be UTF-8"),
    line("empty line", "", "forget.jsonl:2: every line must hold one JSON object, got an empty line; remove it"),
    line("malformed JSON", '{"question": "Who', "forget.jsonl:2: every line must hold one JSON object, got malformed JSON"),
    line("two objects in a line", GOOD + GOOD, "malformed JSON (Extra data"),
    line("line that is no object", "[]", "forget.jsonl:2: a record must be a JSON object, got list; one object a line"),
    line("field that is missing", '{"question": "Who?"}', "a record needs `question` and `answer`"),
    line("field that is misspelt", '{"question": "Who?", "answre": "She."}', "`answer` is missing (is it `answre`, misspelt?)"),
    line("field that is empty", '{"question": "Who?", "answer": " "}', "`answer` must be a non-empty text, got ' '; write it"),
    line("field that is a number", '{"question": "Who?", "answer": 5}', "`answer` must be a non-empty text, got 5"),
    line("field that comes twice", '{"question": "Who?", "answer": "a", "answer": "b"}', "the key 'answer' twice in one object"),
    line("number that no JSON has", '{"question": "Who?", "answer": "a", "x": NaN}', "NaN, which is no JSON number"),
    line("number beyond a float", '{"question": "Who?", "answer": "a", "x": 1e999}', "a number beyond what a float holds"),
    line("half a surrogate pair", HALF, "half a surrogate pair, which is no character"),
    line("JSON nested too deeply", '{"x": ' + "[" * 5000, "nested too deeply"),
    line("digits without end", '{"x": ' + "9" * 5000 + "}", "forget.jsonl:2: ", "an integer of thousands of digits"),
    line(
        "wrong answers that are no list",
        '{"question": "Who?", "answer": "a", "perturbed_answer": "b"}',
        "must be a list of non-empty texts, got str",
    ),
    line(
        "alternative that counts as wrong",
        '{"question": "Who?", "answer": "a", "perturbed_answer": ["b"], "alternative_answers": ["b"]}',
        "`alternative_answers` must not hold answers that evaluation scores as wrong",
    ),
    line(
        "record to forget and to keep",
        json.dumps(RETAIN[0]),
        "must not overlap, got 1 shared record(s)",
        "remove them from one of the two",
    ),
    line("line without end", '{"x": "' + "y" * 2**24 + '"}', "a line must have at most 16777216 bytes, got more"),
    # requests
    asked("request without an id", GOOD, "a request needs its own `request.id`", identity=""),
    asked("request without a reason", GOOD, "a request needs its own `request.reason`", identity="--request.id r1"),
    asked(
        "record that is asked for twice", f"{GOOD}\n{GOOD}\n", "a record is asked to be forgotten once, got rows 1 and 2 alike"
    ),
    asked("request file that is empty", "", "must hold at least one record, got the empty file"),
    asked("request with a line that is none", f"{GOOD}\nnull\n", "request.jsonl:2: a record must be a JSON object, got NoneType"),
)


def test_there_are_enough_kinds_and_no_two_are_the_same() -> None:
    assert len(KINDS) >= LEAST_KINDS
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert len({(kind.verb, kind.arguments, str(kind.files), str(kind.environment)) for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_bad_input_is_answered_with_one_message(
    kind: Kind, run: Verb, tmp_path: Path, fill: Callable[[str], str]
) -> None:
    for name, content in kind.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    os.environ.update(kind.environment)
    message = run(kind.verb, *map(fill, kind.arguments)).message
    for words in kind.words:
        assert fill(words) in message
    # a value, and what to do: a message that only says "invalid" helps nobody
    assert re.search(
        r"\bgot\b|twice|nested|unknown|expected|Keys should|without|constructor|anchor|integer|bytes|UTF-8|invalid", message
    )
    assert len(message) < 1500
    assert FORGET[0]["answer"] not in message


@pytest.fixture
def fill(tmp_path: Path) -> Callable[[str], str]:
    """Puts the folder of the test in its place."""
    return lambda text: text.replace("{tmp}", str(tmp_path))
