"""The benchmark command: its arithmetic by hand, its messages, and every benchmark once at toy size."""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grun.data.records import QARecord
from grun.data.splits import Splits
from grun.errors import ClusterError, ConfigError
from pipelines.benchmark import main, parse_options
from pipelines.benchmarks.harness import Seconds, compare, cost, interleave, plain, timed
from pipelines.benchmarks.memory_worker import Watch, held, mapped
from pipelines.benchmarks.scale import exponent
from pipelines.benchmarks.serve import percentile
from pipelines.benchmarks.table import BENCHMARKS
from pipelines.benchmarks.workload import Geometry, lengthened, make_tokenizer
from pipelines.running import run_command

RunBenchmark = Callable[..., dict[str, Any]]


class TestHarness:
    def test_a_ratio_is_the_median_over_the_repeats(self) -> None:
        ours = [Seconds(cpu=2.0, wall=3.0), Seconds(cpu=9.0, wall=9.0), Seconds(cpu=3.0, wall=6.0)]
        theirs = [Seconds(cpu=1.0, wall=1.0), Seconds(cpu=3.0, wall=2.0), Seconds(cpu=2.0, wall=1.0)]
        row = compare("a_over_b", ours, theirs)
        # by repeat 2, 3 and 1.5: not the ratio of the medians, 3 over 2, nor the other way round
        assert (row.ratio, row.low, row.high) == (2.0, 1.5, 3.0)
        assert (row.value, row.baseline, row.unit) == (3.0, 2.0, "s CPU")
        assert row.wall_ratio == 4.5

    def test_where_a_device_works_wall_time_is_compared(self) -> None:
        row = compare("a_over_b", [Seconds(cpu=1.0, wall=6.0)], [Seconds(cpu=1.0, wall=2.0)], wall_only=True)
        assert (row.value, row.baseline, row.ratio, row.unit) == (6.0, 2.0, 3.0, "s")

    def test_a_cost_has_its_median_and_range(self) -> None:
        cpu, wall = cost("a", [Seconds(4.0, 5.0), Seconds(1.0, 7.0), Seconds(2.0, 6.0)])
        assert (cpu.name, cpu.value, cpu.low, cpu.high) == ("a.cpu", 2.0, 1.0, 4.0)
        assert (wall.name, wall.value, wall.low, wall.high) == ("a.wall", 6.0, 5.0, 7.0)

    def test_a_single_number_may_have_a_baseline(self) -> None:
        assert plain("a", 3.0, "MB", 4.0).ratio == 0.75
        assert plain("a", 3.0, "MB").ratio is None

    def test_ways_take_turns_and_each_repeat_starts_with_another(self) -> None:
        ran: list[tuple[str, int]] = []

        def way(name: str) -> Callable[[int], int]:
            def run(index: int) -> int:
                ran.append((name, index))
                return len(ran)

            return run

        samples = interleave({"a": way("a"), "b": way("b")}, 2, title="turns")
        assert ran == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]  # the first two are warm-up
        assert samples == {"a": [3, 6], "b": [4, 5]}

    def test_a_timed_action_is_run_between_two_syncs(self) -> None:
        ran: list[object] = []
        taken = timed(ran.append, sync=lambda: ran.append("sync"))(7)
        assert ran == ["sync", 7, "sync"]
        assert taken.cpu >= 0

    def test_the_exponent_of_a_power_law(self) -> None:
        assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
        assert exponent([10, 100], [5, 5]) == pytest.approx(0, abs=1e-9)


class TestMemory:
    def test_the_watch_sees_what_was_allocated_while_it_looked(self) -> None:
        before, watch = held(), Watch()
        with watch.running():
            filled = torch.ones(8_000_000)
        assert watch.peak - before > 0.9 * 4 * len(filled)

    def test_mapped_pages_count_by_their_folder(self, tmp_path: Path) -> None:
        (tmp_path / "weights").write_bytes(b"1" * 1_000_000)
        with (tmp_path / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            assert sum(pages[::4096]) > 0  # a page is resident once it was read
            assert mapped(tmp_path) >= 1_000_000
            assert mapped(tmp_path / "elsewhere") == 0
        assert mapped(tmp_path) == 0


def test_a_long_prompt_keeps_its_question_and_its_answer() -> None:
    records = tuple(QARecord(f"Who painted number {n}?", f"Number {n} was painted by someone of that name.") for n in range(40))
    splits = Splits(records[:4], records[4:], ())
    tokenizer = make_tokenizer(splits, Geometry(vocab_size=300))
    longer = lengthened(splits, tokenizer, 64)
    for before, after in zip((*splits.forget, *splits.retain), (*longer.forget, *longer.retain), strict=True):
        assert isinstance(before, QARecord)
        assert isinstance(after, QARecord)
        assert after.question.endswith(f"\n{before.question}")
        assert after.answer == before.answer
        assert len(tokenizer(after.question)["input_ids"]) >= 64
    assert len({record.digest for record in longer.forget}) == 4


class TestCommand:
    @pytest.mark.parametrize(("argv", "got"), [([], "got none"), (["stepp"], r"got 'stepp' \(did you mean `step`\?\)")])
    def test_without_a_known_name_it_lists_the_benchmarks(self, argv: list[str], got: str) -> None:
        with pytest.raises(ConfigError, match=got) as caught:
            parse_options(argv)
        assert all(f"  {name} " in str(caught.value) and b.summary in str(caught.value) for name, b in BENCHMARKS.items())

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["step", "--repeats", "0"], "`--repeats` must be at least 1, got 0"),
            (["step", "--repeats", "many"], "invalid int value: 'many'; `--help`"),
            (["step", "--colour"], "unrecognized arguments: --colour; `--help`"),
            (["quality", "--data.kind", "paper"], "invalid choice: 'paper'"),
            (["step", "--data.kind", "tofu"], "`--data.kind` is an option of `quality` and `sequence`, got it with `step`"),
        ],
    )
    def test_a_wrong_option_is_refused(self, argv: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            parse_options(argv)

    def test_help_lists_the_benchmarks_and_the_options(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            parse_options(["--help"])
        assert stop.value.code == 0
        said = capsys.readouterr().out
        assert all(word in said for word in (*BENCHMARKS, "--repeats", "--data.kind", "--data.path", "--output"))

    def test_gpu_without_a_gpu_is_a_mistake_that_the_user_can_mend(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        argv = ["gpu", "--output", str(tmp_path)]
        with pytest.raises(ClusterError, match="needs a CUDA device"):
            main(argv)
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: main(argv))
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith("error: benchmark `gpu` needs a CUDA device")
        assert not (tmp_path / "gpu.json").exists()


def test_step_trains_the_same_adapter_in_all_three_ways(run_benchmark: RunBenchmark, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_benchmark("step")
    for objective in ("gd", "npo", "idk", "rmu", "gd_long"):
        assert rows[f"step.{objective}.gradient_rel_error"]["value"] < 1e-5
        assert rows[f"step.{objective}.pyreft_gradient_rel_error"]["value"] < 1e-5
        for way in ("pyreft", "full"):
            row = rows[f"step.{objective}.{way}_over_cached"]
            assert row["value"] == rows[f"step.{objective}.{way}.cpu"]["value"]
            assert row["ratio"] == row["value"] / row["baseline"]
    assert rows["step.gd_long.median_row"]["value"] > rows["step.gd.median_row"]["value"] + 40
    assert {f"step.full_buckets.{count}_over_4" for count in (1, 2, 4, 8)} <= rows.keys()
    assert "step.rmu.full_over_cached" in capsys.readouterr().out


def test_inference_compares_prefill_and_decoding(run_benchmark: RunBenchmark) -> None:
    rows = run_benchmark("inference")
    for phase in ("prefill", "decode"):
        assert rows[f"inference.{phase}_over_base"] == {
            **rows[f"inference.{phase}_over_base.batch_32"],
            "name": f"inference.{phase}_over_base",
        }
        assert f"inference.{phase}_over_base.batch_1" in rows


@pytest.mark.slow  # teaches a tiny base
def test_sequence_compares_three_ways_and_the_cost_of_the_last_request(run_benchmark: RunBenchmark) -> None:
    rows = run_benchmark("sequence")
    cost = rows["sequence.request_cpu"]
    assert cost["ratio"] == cost["value"] / cost["baseline"]
    assert cost["low"] <= cost["ratio"] <= cost["high"]
    assert cost["low"] <= 1 <= cost["high"], "the first request is one of them"
    for way in ("others", "neither", "recalibrated"):
        assert {f"sequence.{way}.{what}" for what in ("recall_most", "ordinary_open", "utility_ratio")} <= rows.keys()


def test_stack_compares_many_members_with_one_and_with_none(run_benchmark: RunBenchmark) -> None:
    rows = run_benchmark("stack")
    for phase in ("prefill", "decode"):
        row = rows[f"stack.{phase}_50_over_1"]
        assert row == {**rows[f"stack.{phase}_50_over_1.batch_32"], "name": row["name"]}
        assert row["value"] == rows[f"stack.{phase}.batch_32.50.cpu"]["value"]
        assert row["baseline"] == rows[f"stack.{phase}.batch_32.1.cpu"]["value"]
        assert {f"stack.{phase}_{size}_over_base.batch_1" for size in (1, 10, 50)} <= rows.keys()


@pytest.mark.slow  # starts Ray, and two servers
def test_serve_compares_the_champion_with_the_base(run_benchmark: RunBenchmark) -> None:
    rows = run_benchmark("serve")
    for clients in (1, 8, 32):
        row = rows[f"serve.throughput_champion_over_base.clients_{clients}"]
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])
        for way in ("base", "champion"):
            name = f"clients_{clients}.{way}"
            assert 0 < rows[f"serve.latency_median.{name}"]["value"] <= rows[f"serve.latency_p95.{name}"]["value"]
    assert rows["serve.throughput_champion_over_base"]["ratio"] == row["ratio"]
    assert rows["serve.swaps"]["value"] == 4
    assert rows["serve.swaps_failed_requests"]["value"] == 0


def test_a_percentile_is_one_of_the_values() -> None:
    assert [percentile([3.0, 1.0, 2.0, 4.0], share) for share in (0.25, 0.5, 0.51, 0.95, 1.0)] == [1, 2, 3, 4, 4]
    assert percentile([float(value) for value in range(1, 101)], 0.95) == 95


def test_scale_fits_an_exponent_to_every_curve(run_benchmark: RunBenchmark) -> None:
    rows = run_benchmark("scale")
    wanted = {f"scale.{kind}.{way}_exponent" for kind in ("prompt_tokens", "blocks", "width") for way in ("full", "cached")}
    assert {*wanted, "scale.cached_rows.build_exponent"} <= rows.keys()


@pytest.mark.slow  # four processes import torch, two of them set up DeepSpeed
def test_memory_counts_what_each_worker_holds(run_benchmark: RunBenchmark) -> None:
    rows = run_benchmark("memory")
    base = {way: rows[f"memory.{way}.base"]["value"] for way in ("full", "cached", "cached_zero3")}
    # one of four blocks is above the cut, and the head; ZeRO-3 halves what is large of that
    assert base["cached"] < 0.5 * base["full"]
    assert base["cached_zero3"] == pytest.approx(base["cached"] / 2, rel=0.05)
    for way in ("cached", "cached_zero3"):
        assert rows[f"memory.{way}_over_full"]["ratio"] > 0


@pytest.mark.slow  # starts Ray, and an MLflow server
def test_outage_compares_a_step_under_every_trouble(run_benchmark: RunBenchmark) -> None:
    rows = run_benchmark("outage")
    assert rows.keys() == {f"outage.{kind}_over_healthy" for kind in ("slow", "dead", "failing")}
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])
