"""Truncated files and flipped bits: whatever is kept is told from what was written, and recovered or refused by name."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from grun.adapters import AdapterCard, read_card, save_adapter
from grun.config import AdapterConfig, PromptConfig, TaughtModelConfig
from grun.data.prompts import PromptEncoder
from grun.data.records import QARecord
from grun.errors import GrunError
from grun.evaluation.retain_logs import RetainLogsHeader, read_retain_logs, write_retain_logs
from grun.evaluation.scores import RowScore
from grun.interventions import build_adapter
from grun.ledger import parse_export
from grun.lm import FrozenLM, PrefixCache
from grun.lm.cache_build import finish, write_shard
from grun.lm.prefix_cache import CacheProbe, make_spec
from grun.lm.teach import is_taught, teach_model
from grun.training import Checkpoints, MetricsSpool, read_spool_lines, whole_steps
from grun.writing import seal, write_text
from pipelines.ledger_verbs.export import write_export
from pipelines.prepared import plan, read_prepared, write_prepared
from pipelines.sweep_record import TrialRecord, mend_trials
from pipelines.trainer import CLAIM_FILE, has_ended, read_claim, read_outcome
from tests.faults.injection import Injection
from tests.faults.table import row
from tests.ledger.example_ledger import example_ledger


@dataclass(frozen=True)
class Kept:
    """Something that is kept in files."""

    files: tuple[Path, ...]
    read: Callable[[], object]
    """Gives what was written, or refuses with one of our errors, which names the place."""
    place: Path
    """What a refusal names."""


def damages(content: bytes, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """The same bytes cut off in several places, and with one of several bits flipped."""
    choose = random.Random(seed)
    for length in sorted({0, 1, len(content) // 2, len(content) - 1, *(choose.randrange(len(content)) for _ in range(3))}):
        yield f"cut to {length} of {len(content)} bytes", content[:length]
    for _ in range(24):
        place, bit = choose.randrange(len(content)), choose.randrange(8)
        yield f"bit {bit} of byte {place} flipped", content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def tried(read: Callable[[], object]) -> tuple[Any, str | None]:
    """What reading gives, or the words of an error of ours."""
    try:
        return read(), None
    except GrunError as error:
        return None, str(error)


def check(kept: Kept) -> None:
    """Every damage is found: what is read is what was written, or there is an error that names the place."""
    expected = kept.read()
    for number, file in enumerate(kept.files):
        content = file.read_bytes()
        backup = {path: path.read_bytes() for path in kept.files}
        for what, damaged in damages(content, seed=number):
            file.write_bytes(damaged)
            found, refusal = tried(kept.read)
            if refusal is None:
                assert found == expected, (file.name, what)
            else:
                assert str(kept.place) in refusal, (file.name, what)
            for path, before in backup.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(before)


class Optimizer:
    """What is kept of one."""

    def state(self) -> dict[str, torch.Tensor]:
        return {"step/w": torch.ones(())}


@pytest.fixture
def adapter_folder(tmp_path: Path, tiny_lm: FrozenLM) -> Path:
    config = AdapterConfig(layers=(1, 3), rank=2, gate_threshold=0.5)
    adapter = build_adapter(config, hidden_size=tiny_lm.hidden_size, num_layers=tiny_lm.num_layers, seed=0)
    card = AdapterCard(
        adapter=config, hidden_size=tiny_lm.hidden_size, num_layers=tiny_lm.num_layers, base_name="tiny", base_digest="0" * 64
    )
    return save_adapter(adapter, card, tmp_path / "adapter")


def checkpoints(tmp_path: Path, tiny_lm: FrozenLM) -> tuple[Checkpoints, dict[str, bytes]]:
    """Two, after steps 2 and 4; what is damaged is deleted, so the good ones are kept aside."""
    adapter = build_adapter(AdapterConfig(layers=(1,), rank=1), hidden_size=tiny_lm.hidden_size, num_layers=4, seed=0)
    kept = Checkpoints(tmp_path / "checkpoints")
    for step in (2, 4):
        kept.save(adapter, cast(Any, Optimizer()), step=step, trajectory="t" * 64)
    return kept, {str(p.relative_to(kept.folder)): p.read_bytes() for p in kept.folder.rglob("*") if p.is_file()}


@row(
    "damage",
    "a checkpoint is truncated, or has a flipped bit",
    where="train and every trial, when they go on",
    sees="`checkpoint step00000004 in '...' was damaged and is deleted; training goes on from the one before, step 2` (of a trial: as a flag of it)",
    lost="nothing but time: the same adapter, bit for bit; with both damaged, training begins anew",
    broken=Injection("grun.training.checkpoint:_check", "skip", always=True),
)
def test_a_damaged_checkpoint(tmp_path: Path, tiny_lm: FrozenLM) -> None:
    kept, good = checkpoints(tmp_path, tiny_lm)
    for number, name in enumerate(name for name in good if name.startswith("step00000004")):
        for what, damaged in damages(good[name], seed=number):
            shutil.rmtree(kept.folder)
            for other, content in good.items():
                (kept.folder / other).parent.mkdir(parents=True, exist_ok=True)
                (kept.folder / other).write_bytes(damaged if other == name else content)
            found = kept.find("t" * 64)
            if found.step == 2:
                assert found.note is not None
                assert "step00000004" in found.note, what
                assert "goes on from the one before, step 2" in found.note
                assert not (kept.folder / "step00000004").exists()
            else:  # blanks between the values of a JSON object may change
                assert (found.step, Path(name).name) == (4, "state.json"), what
    (kept.folder / "step00000002" / "state.json").write_bytes(b"")
    shutil.rmtree(kept.folder / "step00000004", ignore_errors=True)
    found = kept.find("t" * 64)
    assert (found.step, found.folder) == (0, None)
    assert found.note is not None
    assert "begins anew" in found.note
    assert list(kept.folder.iterdir()) == []


@row(
    "damage",
    "a line of the spool is torn by a crash, or has a flipped bit",
    where="train and every trial",
    sees="a warning; a run that goes on starts from a checkpoint before the gap and computes the step once more",
    lost="nothing; in a run that has ended, or where the gap is older than both checkpoints, that line (flag `metrics_lost` names the step)",
    broken=Injection("grun.training.spool:zlib.crc32", "replace", always=True, by="tests.faults.test_damage:no_sum"),
)
def test_a_damaged_line_of_the_spool(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    spool = MetricsSpool(path, clock=lambda: 1.5)
    for step in range(1, 6):
        spool.write(step, {"train/loss": 0.1 * step, "train/grad_norm": 2.0})
    good, content = read_spool_lines(path), path.read_bytes()
    for what, damaged in damages(content, seed=0):
        path.write_bytes(damaged)
        found = read_spool_lines(path)
        assert all(good[step] == line for step, line in found.items()), what
        assert len(found) >= 3 or "cut" in what
        whole = whole_steps(path)
        assert all(step in found for step in range(1, whole + 1))
        # what comes next is not glued to what was torn
        MetricsSpool(path, clock=lambda: 1.5).write(6, {"train/loss": 0.6})
        assert read_spool_lines(path)[6].metrics == {"train/loss": 0.6}, what


def no_sum(_function: object, _content: bytes) -> int:
    """A sum that everything has."""
    return 0


@row(
    "damage",
    "an adapter's file, its certificate included, is truncated or has a flipped bit",
    where="whoever reads an adapter folder: evaluate, promote, serve, the ledger",
    sees="`adapter.safetensors` must be as it was written, got other bytes in '...'; fetch the adapter again",
    lost="nothing: refused; the run's last checkpoint and the registry have it",
    broken=Injection("grun.writing:_digest", "replace", always=True, by="tests.faults.test_damage:same"),
)
def test_a_damaged_adapter(adapter_folder: Path) -> None:
    files = tuple(sorted(adapter_folder.iterdir()))
    check(Kept(files, lambda: read_card(adapter_folder), adapter_folder))


def same(_function: object, _values: object) -> str:
    """A digest that everything has."""
    return "0" * 64


@row(
    "damage",
    "an adapter's outcome is truncated or has a flipped bit",
    where="train and sweep, when they go on",
    sees="`'.../outcome.json' is not as it was written ... and is deleted; it is made anew from the last checkpoint`",
    broken=Injection("grun.writing:_digest", "replace", always=True, by="tests.faults.test_damage:same"),
)
def test_a_damaged_outcome(tmp_path: Path) -> None:
    path = outcome_file(tmp_path)
    check(Kept((path,), lambda: read_outcome(tmp_path), path))
    path.write_bytes(path.read_bytes().replace(b"6", b"7", 1))
    assert not has_ended(tmp_path)
    assert not path.exists()


def outcome_file(folder: Path) -> Path:
    """The outcome of a run that has ended well."""
    values = {
        "steps": 6,
        "total_steps": 6,
        "stopped_early": False,
        "resident_share": 1.0,
        "flags": {},
        "gate_values": {"forget": [0.25]},
    }
    write_text(folder / "outcome.json", seal(values))
    return folder / "outcome.json"


@row(
    "damage",
    "the adapter of a run or trial that has ended is gone, truncated or has a flipped bit",
    where="train and sweep, when they are run again",
    sees="`the adapter of '...' is damaged (...); it is made anew from the last checkpoint`",
    broken=Injection("pipelines.trainer:read_card", "skip", always=True),
)
def test_a_damaged_adapter_of_a_run_that_has_ended(
    adapter_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome_file(tmp_path)
    assert has_ended(tmp_path)
    for path in sorted(adapter_folder.iterdir()):
        content = path.read_bytes()
        for how, damaged in damages(content.rstrip(b"\n"), seed=0):
            path.write_bytes(damaged)
            assert not has_ended(tmp_path), f"{path.name} {how}"
            assert f"the adapter of {str(tmp_path)!r} is damaged" in capsys.readouterr().err
            outcome_file(tmp_path)
        path.write_bytes(content)
        assert has_ended(tmp_path)
    shutil.rmtree(adapter_folder)
    assert not has_ended(tmp_path)


@row(
    "damage",
    "the settings of a run or sweep (`recipe.json`) are truncated or have a flipped bit",
    where="train and sweep, before any work",
    sees="the settings of a run must be as they were written, got '...'; if this is the recipe that the run was started with, delete that file",
    broken=Injection("grun.writing:_digest", "replace", always=True, by="tests.faults.test_damage:same"),
)
def test_damaged_settings(tmp_path: Path) -> None:
    write_text(tmp_path / CLAIM_FILE, seal({"seed": 1, "train": {"epochs": 3, "learning_rate": 1e-3}}))
    check(Kept((tmp_path / CLAIM_FILE,), lambda: read_claim(tmp_path), tmp_path / CLAIM_FILE))


@row(
    "damage",
    "the record of a trial (`trial.json`) is truncated, gone, or has a flipped bit",
    where="sweep, when it goes on",
    sees="`'.../trial.json' was not as it was written ...; it is restored from its copy`",
    broken=Injection("grun.writing:_digest", "replace", always=True, by="tests.faults.test_damage:same"),
)
def test_a_damaged_record_of_a_trial(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "00001"
    folder.mkdir(parents=True)
    record = TrialRecord(trial_id="00001", number=1, point={"adapter.rank": 3}, done=True, result={"sweep/utility": 0.75})
    record.write(folder)
    names = ("trial.json", ".trial.json.copy")
    good = (folder / names[0]).read_bytes()
    for name in names:
        for what, damaged in damages(good, seed=1):
            (folder / name).write_bytes(damaged)
            assert TrialRecord.read(folder) == record, what
            (folder / name).write_bytes(good)
    (folder / names[0]).write_bytes(good[:40])
    [said] = mend_trials(tmp_path)
    assert str(folder / names[0]) in said
    assert (folder / names[0]).read_bytes() == good
    assert mend_trials(tmp_path) == []
    (folder / names[1]).write_bytes(b"{")  # nothing is left to recover from
    check(Kept((folder / names[0],), lambda: TrialRecord.read(folder), folder))


@row(
    "damage",
    "prepared data are truncated or have a flipped bit",
    where="every verb",
    sees="`prepared data must be what the request was made about, got another forget set in '...'...: it is written anew`",
    broken=Injection("grun.data.records:digest_records", "replace", always=True, by="tests.faults.test_damage:same"),
)
def test_damaged_prepared_data(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    prepared = plan(make_recipe(output=str(tmp_path)))
    write_prepared(prepared)
    folder = prepared.folder
    expected = read_prepared(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) > 3
    for number, file in enumerate(files):
        content = file.read_bytes()
        for what, damaged in list(damages(content, seed=number))[::4]:
            file.write_bytes(damaged)
            write_prepared(prepared)
            request, splits = read_prepared(folder)
            assert splits == expected[1], (file.name, what)
            assert request == expected[0], (file.name, what)


@row(
    "damage",
    "a file of the prefix cache is truncated or has a flipped bit",
    where="train and sweep, before any step",
    sees="a prefix cache must be as it was written, got the damaged file '.../shard-00000.safetensors'; delete its folder",
    broken=Injection("grun.lm.prefix_cache:file_digest", "replace", always=True, by="tests.faults.test_damage:as_its_index_says"),
)
def test_a_damaged_file_of_the_cache(tmp_path: Path, tiny_lm: FrozenLM) -> None:
    encoder = PromptEncoder(tiny_lm.tokenizer, PromptConfig(), context=128)
    examples = [encoder.encode(QARecord(f"Where is {name}?", "Here.")) for name in ("Ilva", "Bram", "Nore")]
    folder = tmp_path / "cache"
    spec = make_spec(examples, base_digest="0" * 64, dtype="float32", template={}, cuts=[1], num_layers=4)
    write_shard(tiny_lm, spec, examples, folder, 0, batch_size=4)
    finish(folder, spec, CacheProbe(loss_difference=0.0, gradient_rel_error=0.0))

    def read() -> list[Any]:
        cache = PrefixCache.open(folder, spec)
        return [cache.row(example).keys_values(3)[0].sum().item() for example in examples]

    check(Kept(tuple(sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")), read, folder))
    state = folder / "cache.json"
    content = state.read_bytes()
    for _what, damaged in damages(content, seed=9):
        state.write_bytes(damaged)
        found, refusal = tried(lambda: PrefixCache.open(folder, spec).spec)
        assert found == spec if refusal is None else str(folder) in refusal
    state.write_bytes(content)


def as_its_index_says(_function: object, path: Path) -> str:
    """What a check that looks at sizes alone would find."""
    import json

    index = path.with_suffix(".json")
    return str(json.loads(index.read_text())["sha256"]) if index.is_file() else "0" * 64


@row(
    "damage",
    "the weights, tokenizer or configuration of the testbed's base are truncated or have a flipped bit",
    where="every verb that needs it",
    sees="it is taught once more, to the same weights",
    broken=Injection("grun.lm.teach:digest_weights", "replace", always=True, by="tests.faults.test_damage:same"),
)
def test_a_damaged_taught_base(tmp_path: Path) -> None:
    config = TaughtModelConfig(hidden_size=32, num_layers=2, num_heads=2, vocab_size=320, epochs=1)
    records = [QARecord("Where does Ilva live?", "In Harn.")]
    folder = teach_model(config, PromptConfig(), records, records, tmp_path / "taught")
    assert is_taught(folder)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        for what, damaged in list(damages(content, seed=3))[::5]:
            (folder / name).write_bytes(damaged)
            # keys that only record how the file was written decide nothing
            assert not is_taught(folder) or name == "config.json", (name, what)
        (folder / name).write_bytes(content)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-9])
    teach_model(config, PromptConfig(), records, records, folder)
    assert (folder / "model.safetensors").read_bytes() == weights


@row(
    "damage",
    "retain-only logs are truncated or have a flipped bit",
    where="evaluate and promote, before any work",
    sees="the rows of retain-only logs must be as they were written, got others; make them again ..., or copy the file again",
    broken=Injection(
        "grun.evaluation.retain_logs:write_atomically", "replace", always=True, by="tests.faults.test_damage:without_sums"
    ),
)
def test_damaged_retain_logs(tmp_path: Path) -> None:
    path = tmp_path / "logs.jsonl"
    header = RetainLogsHeader(
        base_digest="b", model_digest="m", dtype="float32", prompt=PromptConfig(), max_new_tokens=4, sets={"forget": "d"}
    )
    rows = [make_row(number) for number in range(4)]
    write_retain_logs(path, header, rows)
    written = path.read_bytes()
    first = written.index(b"\n") + 1
    expected = read_retain_logs(path).rows
    for what, damaged in damages(written[first:], seed=5):
        path.write_bytes(written[:first] + damaged)
        with pytest.raises(GrunError, match=r"logs\.jsonl"):
            assert read_retain_logs(path).rows != expected, what


def without_sums(function: Callable[[Path, str], None], path: Path, text: str) -> None:
    """A file of a version before there were sums."""
    import re

    function(path, re.sub(r'"rows_sha256":"[0-9a-f]+"', '"rows_sha256":null', text))


def make_row(number: int) -> RowScore:
    """One scored prompt."""
    return RowScore(
        set_name="forget", digest=f"{number:064d}", prompt="question", num_answer_tokens=3, answer_nll_nats=1.5 + number
    )


@row(
    "damage",
    "an exported ledger is truncated or has a flipped bit",
    where="ledger verify",
    sees="an exported ledger must ..., got line N of '...'",
    broken=Injection(
        "grun.ledger.export:LedgerEntry.parse", "replace", always=True, by="tests.faults.test_damage:whatever_it_says"
    ),
)
def test_a_damaged_ledger_export(tmp_path: Path) -> None:
    ledger = example_ledger()
    path = tmp_path / "ledger.jsonl"
    write_export(ledger, path)
    content = path.read_bytes()
    for what, damaged in damages(content, seed=2):
        path.write_bytes(damaged)
        found, refusal = tried(lambda: parse_export(path))
        if refusal is not None:
            assert str(path) in refusal or "got entry " in refusal, what
        else:  # cut between two lines: a whole ledger of fewer entries, which is told from the whole one beside it
            assert found.entries == ledger.entries[: len(found.entries)], what
            with pytest.raises(GrunError):
                found.check_continues(ledger)


def whatever_it_says(_function: object, cls: Any, text: str, **_where: object) -> Any:
    """An entry whose digest nobody looks at."""
    return cls.model_validate_json(text)
