"""Everything that writes a file or folder, on a disk without a block left: said by name, nothing half done stays, and it works once there is room."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file

from grun.adapters import AdapterCard, save_adapter
from grun.config import AdapterConfig, PromptConfig
from grun.data.records import QARecord
from grun.errors import DiskError
from grun.evaluation.report import EvalReport
from grun.evaluation.retain_logs import RetainLogsHeader, write_retain_logs
from grun.interventions import build_adapter
from grun.training import Checkpoints, MetricsSpool
from grun.writing import telling, whole_folder, write_text
from pipelines.last_word import forget_error, read_error, write_error
from pipelines.ledger_verbs.export import write_export
from pipelines.sweep_record import TrialRecord
from tests.faults.injection import Injection
from tests.faults.small_disk import small_disk
from tests.faults.table import row
from tests.ledger.example_ledger import example_ledger

CONFIG = AdapterConfig(layers=(1,), rank=2)


def adapter(folder: Path) -> None:
    card = AdapterCard(adapter=CONFIG, hidden_size=32, num_layers=4, base_name="tiny", base_digest="0" * 64)
    save_adapter(build_adapter(CONFIG, hidden_size=32, num_layers=4, seed=0), card, folder / "adapter")


class Optimizer:
    """What is kept of one."""

    def state(self) -> dict[str, torch.Tensor]:
        return {"step/w": torch.ones(())}


def checkpoint(folder: Path) -> None:
    trained = build_adapter(CONFIG, hidden_size=32, num_layers=4, seed=0)
    Checkpoints(folder).save(trained, cast(Any, Optimizer()), step=2, trajectory="t")


def retain_logs(folder: Path) -> None:
    header = RetainLogsHeader(
        base_digest="b", model_digest="m", dtype="float32", prompt=PromptConfig(), max_new_tokens=4, sets={}
    )
    write_retain_logs(folder / "logs.jsonl", header, [])


def prepared(folder: Path) -> None:
    with whole_folder(folder / "prepared") as partial:
        (partial / "forget.jsonl").write_text(str(QARecord("Where?", "Here.")) * 100, encoding="utf-8")


def tensors(folder: Path) -> None:
    with telling(folder / "shard.safetensors"):
        save_file({"keys": torch.ones(5000)}, folder / "shard.safetensors")


WRITERS: dict[str, Callable[[Path], object]] = {
    "adapter": adapter,
    "checkpoint": checkpoint,
    "retain-only logs": retain_logs,
    "prepared data": prepared,
    "cache file": tensors,
    "report": lambda folder: EvalReport(base_digest="b", part="test", metrics=()).save(folder / "report.json"),
    "page": lambda folder: write_text(folder / "report.html", "<p>" * 9999),
    "ledger export": lambda folder: write_export(example_ledger(), folder / "ledger.jsonl"),
    "trial": lambda folder: TrialRecord(trial_id="1", point={}).write(folder),
    "room for an error": forget_error,
}


@row(
    "disks",
    "no block is left for an adapter, checkpoint, report, page, retain-only logs, prepared data, ledger export, record of a trial",
    where="every writer, for real",
    sees="what is written must find its place, got the disk of '...', which has no room left (...); free space there",
    broken=Injection("grun.writing:disk_error", "skip", always=True),
)
@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_on_a_full_disk(name: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=512) as disk:
        disk.fill()
        with pytest.raises(
            DiskError, match=rf"got the disk of '{disk.folder}.*', which has no room left \(No space left on device; 0 of "
        ):
            WRITERS[name](disk.folder)
        left = [path.name for path in disk.folder.rglob("*") if path.is_file()]
        assert left == ["ballast"]
        disk.free()
        WRITERS[name](disk.folder)
        assert [path.name for path in disk.folder.rglob("*") if ".partial-" in path.name or path.name.endswith(".tmp")] == []


@row(
    "disks",
    "the quota is used up (injected into `fsync`, where network file systems say so)",
    where="adapter, checkpoint, report, record of a trial, ledger export, prepared data",
    sees="what is written must find its place, got the disk of '...', which is used up to its quota (...); delete files there, or have the quota raised",
    broken=Injection("grun.writing:on_disk", "skip", always=True),
)
@pytest.mark.parametrize("name", ["adapter", "checkpoint", "report", "trial", "ledger export", "prepared data"])
def test_a_writer_over_its_quota(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(DiskError, match=rf"got the disk of '{tmp_path}.*', which is used up to its quota \(.* MB are free\)"):
            WRITERS[name](tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    WRITERS[name](tmp_path)
    assert any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_spool_that_found_no_room_loses_no_line(tmp_path: Path) -> None:
    """A page that is there takes some lines; the one that crosses its end is torn."""
    with small_disk(tmp_path / "disk", kilobytes=512) as disk:
        spool = MetricsSpool(disk.folder / "metrics.jsonl", clock=lambda: 1.5)
        spool.write(1, {"train/loss": 1.0})
        disk.fill()
        for step in range(2, 100):
            spool.write(step, {"train/loss": float(step)})
        with pytest.raises(DiskError, match=r"metrics\.jsonl', which has no room left"):
            spool.flush()
        disk.free()
        spool.flush()
        from grun.training import read_spool_lines

        assert [line.metrics["train/loss"] for line in read_spool_lines(spool.path).values()] == [
            float(step) for step in range(1, 100)
        ]


def test_there_is_room_to_say_that_there_is_none(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=512) as disk:
        forget_error(disk.folder)
        disk.fill()
        write_error(disk.folder, DiskError("there is no room"))
        found = read_error(disk.folder)
        assert isinstance(found, DiskError)
        assert str(found) == "there is no room"


def test_a_file_size_limit_is_no_matter_of_the_disk(tmp_path: Path) -> None:
    """EFBIG is not among what a user frees space for."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_text(tmp_path / "file", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []
