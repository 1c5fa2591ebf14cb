"""The files of a prefix cache: what they hold, how large they are, and what is refused."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from grun.data.prompts import Example
from grun.errors import CacheError
from grun.lm import FrozenLM
from grun.lm.cache_build import cache_bytes, cut_into_shards, finish, write_shard
from grun.lm.prefix_cache import CACHE_FILE, CacheProbe, CacheSpec, PrefixCache, make_spec, read_probe, shard_path

PROBE = CacheProbe(loss_difference=1e-7, gradient_rel_error=2e-6)


def example(*ids: int, prompt: int) -> Example:
    return Example("record", ids, prompt)


EXAMPLES = (
    example(5, 9, 11, 42, 7, 30, 1, prompt=4),
    example(5, 9, 11, 42, 8, 1, prompt=4),  # the same prompt
    example(17, 3, 29, 1, prompt=2),
    example(60, 2, 33, 14, 25, 19, 1, prompt=5),
    example(17, 3, 29, 1, prompt=2),  # the same row again
)


def spec_of(lm: FrozenLM, examples: Sequence[Example] = EXAMPLES, cuts: Sequence[int] = (1,)) -> CacheSpec:
    return make_spec(examples, base_digest=lm.info.digest, dtype="float32", template={"template": "qa"}, cuts=cuts, num_layers=4)


def build(lm: FrozenLM, folder: Path, spec: CacheSpec, *, only: int | None = None) -> None:
    for number, rows in enumerate(cut_into_shards(EXAMPLES, 2)):
        if only is None or number == only:
            write_shard(lm, spec, rows, folder, number, batch_size=2)
    if only is None:
        finish(folder, spec, PROBE)


@pytest.fixture
def folder(tiny_lm: FrozenLM, tmp_path: Path) -> Path:
    build(tiny_lm, tmp_path, spec_of(tiny_lm))
    return tmp_path


def test_a_prompt_is_stored_once_and_its_size_is_known_before(tiny_lm: FrozenLM, folder: Path) -> None:
    spec = spec_of(tiny_lm)
    # prefixes of 3, 1 and 4 tokens; answers of 3, 2, 2 and 2
    assert (spec.num_sequences, spec.prefix_tokens, spec.answer_tokens) == (4, 8, 9)
    stored = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            stored += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118 - no mapping
    # 2 blocks above the cut x (key + value) x 2 heads of 8; one state of 32 and one NLL an answer token
    assert stored == cache_bytes(spec, key_value_size=16, hidden_size=32) == 8 * 2 * 2 * 16 * 4 + 9 * (32 * 4 + 4)


def test_deeper_cuts_read_a_part_of_the_same_files(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    spec = spec_of(tiny_lm, cuts=(2, 0, 1))
    assert (spec.cut, spec.state_layers) == (0, (0, 1, 2))
    build(tiny_lm, tmp_path, spec)
    row = PrefixCache.open(tmp_path, spec).row(EXAMPLES[0])
    assert [row.states(layer).shape for layer in (0, 1, 2)] == [(3, 32)] * 3
    assert [tuple(part.shape for part in row.keys_values(layer)) for layer in (1, 2, 3)] == [((2, 3, 8), (2, 3, 8))] * 3


@given(st.permutations(EXAMPLES))
def test_a_spec_does_not_depend_on_the_order_of_the_rows(examples: list[Example]) -> None:
    def digest(rows: Sequence[Example]) -> str:
        return make_spec(rows, base_digest="0", dtype="float32", template={}, cuts=(1,), num_layers=4).digest

    assert digest(examples) == digest(EXAMPLES)
    moved = [example(*EXAMPLES[0].ids, prompt=3), *EXAMPLES[1:]]  # the same ids, another last prompt token
    assert digest(moved) != digest(EXAMPLES)


def test_a_cache_for_something_else_is_an_error_that_says_what_differs(tiny_lm: FrozenLM, folder: Path) -> None:
    other = spec_of(tiny_lm, cuts=(2,)).model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(CacheError, match="serves only what it was made for, got another dtype, cut, state_layers in"):
        PrefixCache.open(folder, other)
    with pytest.raises(CacheError, match="serves only the base it was built from, got base 111111111111 in float32"):
        PrefixCache.open(folder).check_base("1" * 64, "float32")


@pytest.mark.parametrize("where", ["header", "middle", "end"])
def test_a_flipped_bit_is_found(folder: Path, where: str) -> None:
    path = shard_path(folder, 1)
    content = bytearray(path.read_bytes())
    content[{"header": 10, "middle": len(content) // 2, "end": -1}[where]] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"as it was written, got the damaged file '.*shard-00001.safetensors'; delete"):
        PrefixCache.open(folder)


def test_a_truncated_file_is_found_without_reading_it(folder: Path) -> None:
    path = shard_path(folder, 0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CacheError, match="got the damaged file"):
        PrefixCache.open(folder, verify=False)


@pytest.mark.parametrize("name", ["shard-00000.json", "shard-00001.safetensors", CACHE_FILE])
def test_a_missing_file_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CacheError, match="a prefix cache must"):
        PrefixCache.open(folder)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("prompts", [["p", 10**6], ["q", 1]], "other lengths in its index"),
        ("prompts", [["p", -1]], "greater than or equal to 0"),
        ("sequences", [["s", 0, 10**9]], "other lengths in its index"),
        ("sequences", [["s", 7, 1]], "a sequence must have a prompt of the file, got number 7"),
        ("sequences", [["s", 0, 1e300]], "as an integer"),
    ],
)
def test_an_index_that_reaches_beyond_its_file_is_refused(folder: Path, field: str, value: object, why: str) -> None:
    path = shard_path(folder, 0).with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), field: value}), encoding="utf-8")
    with pytest.raises(CacheError, match=why):
        PrefixCache.open(folder)


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b'{"sha256": "a", "sha256": "b"}'])
@pytest.mark.parametrize("name", [CACHE_FILE, "shard-00000.json"])
def test_what_is_no_json_of_ours_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CacheError, match="delete"):
        PrefixCache.open(folder)


@pytest.mark.parametrize(("field", "value"), [("dtype", "float16"), ("cut", 0), ("num_layers", 10**15), ("state_layers", [1, 2])])
def test_a_spec_that_names_other_tensors_than_there_are_is_refused(folder: Path, field: str, value: object) -> None:
    values = json.loads((folder / CACHE_FILE).read_text(encoding="utf-8"))
    values["spec"][field] = value
    (folder / CACHE_FILE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CacheError):
        PrefixCache.open(folder)


def test_a_file_that_does_not_say_how_its_keys_are_divided_is_refused(folder: Path) -> None:
    path = shard_path(folder, 0)
    save_file(load_file(path), path)
    with pytest.raises(CacheError, match=r"a file without `heads`|damaged file"):
        PrefixCache.open(folder, verify=False)


def test_an_interrupted_build_goes_on_where_it_was(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    spec = spec_of(tiny_lm)
    build(tiny_lm, tmp_path, spec, only=1)
    with pytest.raises(CacheError, match="must be finished"):
        PrefixCache.open(tmp_path)
    before = shard_path(tmp_path, 1).stat().st_mtime_ns
    shard_path(tmp_path, 0).write_bytes(b"half")  # no index beside it: it was never finished
    build(tiny_lm, tmp_path, spec)
    assert shard_path(tmp_path, 1).stat().st_mtime_ns == before
    assert all(row in PrefixCache.open(tmp_path, spec) for row in EXAMPLES)
    assert read_probe(tmp_path) == PROBE
    assert not list(tmp_path.glob(".*.tmp"))


def test_shards_hold_every_row_once_and_keep_the_answers_of_a_prompt_together() -> None:
    rng = random.Random(0)
    examples = [example(*(rng.randrange(4) for _ in range(5)), prompt=rng.randrange(1, 4)) for _ in range(200)]
    shards = cut_into_shards(examples, 16)
    assert len(shards) > 1
    flat = [row for shard in shards for row in shard]
    assert (
        len(flat)
        == len(set(flat))
        == make_spec(examples, base_digest="0", dtype="float32", template={}, cuts=(0,), num_layers=2).num_sequences
    )
    assert set(flat) == set(examples)
    for prompt in {row.prompt_ids for shard in shards for row in shard}:
        assert sum(any(row.prompt_ids == prompt for row in shard) for shard in shards) == 1
