"""The command `plan`: times by hand, crossings by what they claim, options and what is written."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grun.errors import ConfigError, ModelError
from pipelines.benchmark import main, parse_options
from pipelines.benchmarks import plan_crossings as crossings
from pipelines.benchmarks.plan import plan_costs, run
from pipelines.benchmarks.plan_costs import Costs, Way, Workload
from pipelines.benchmarks.plan_options import PlanOptions
from pipelines.benchmarks.plan_shapes import GPUS, MODELS, Gpu
from tests.pipelines.plan_example import CACHED, CACHED_ZERO3, FULL, FULL_ZERO3, SHAPE, WORK


class TestTime:
    """A GPU of round numbers: all that a step moves or computes can be read off."""

    GPU = Gpu("round", 1e9, 1e6, 1e6, link_bytes_per_second=1e6, network_bytes_per_second=1e3, disk_bytes_per_second=1e4)

    def costs(self, way: Way, workers: int = 1, **more: Any) -> Costs:
        return Costs(SHAPE, replace(self.GPU, **more), WORK, way, workers, utilisation=0.5)

    def test_inside_a_node_a_worker_receives_all_but_its_own_part(self) -> None:
        # the adapter's gradient alone: in a ring over four, 2 * 3/4 of 4 bytes a weight
        few = self.costs(FULL, 4)
        assert few.received_bytes == 6 * few.adapter_parameters
        assert few.network_seconds == few.received_bytes / 1e6
        assert self.costs(FULL, 1).network_seconds == 0

    def test_between_nodes_each_receives_what_it_lacks_once_over_all_its_adapters(self) -> None:
        # 16 workers on two nodes: half of everything, over eight adapters of 1e3 bytes a second
        many = self.costs(FULL_ZERO3, 16)
        everything = many.gathered_step_bytes + 8 * many.adapter_parameters
        assert many.network_seconds == pytest.approx(everything / 2 / 8e3)
        # with fast adapters the links inside a node are what counts
        assert self.costs(FULL_ZERO3, 16, network_bytes_per_second=1e9).network_seconds == pytest.approx(
            everything * 15 / 16 / 1e6
        )

    def test_a_step_takes_as_long_as_its_longest_part(self) -> None:
        cached = self.costs(CACHED, 2)
        # three of six rows each; half of 1e6 operations a second, and a disk of 1e4 bytes a second
        assert cached.compute_seconds == cached.step_flops / 2 / 0.5e6
        assert cached.storage_seconds == 3 * cached.cached_row_bytes / 1e4
        assert (cached.step_seconds, cached.bound_by) == (cached.compute_seconds, "compute")
        slow = self.costs(CACHED, 2, disk_bytes_per_second=1e3)
        assert (slow.step_seconds, slow.bound_by) == (3 * slow.cached_row_bytes / 1e3, "storage")
        assert (self.costs(FULL).storage_seconds, self.costs(FULL).build_seconds) == (0, 0)

    def test_weights_are_read_forward_and_above_the_cut_backward(self) -> None:
        # two of four blocks are above; the head is read twice
        block, head = SHAPE.block_matrix_parameters, SHAPE.head_parameters
        assert self.costs(FULL).weight_seconds == 4 * (6 * block + 2 * head) / 1e6
        assert self.costs(CACHED).weight_seconds == 4 * (4 * block + 2 * head) / 1e6

    def test_a_sweep_builds_once(self) -> None:
        cached = self.costs(CACHED, 2)
        assert WORK.num_steps == 4  # six rows to forget, three a step, two epochs
        assert cached.gpu_hours(3) * 3600 == pytest.approx(2 * (cached.build_seconds + 3 * 4 * cached.step_seconds))


class TestCrossings:
    """Each is where it says: at the crossing both sides are equal, or one more is too many."""

    WORK = Workload(1000, 9000, 512, 128, 16, 60, (20, 25, 31), 4)

    def costs(self, way: Way, workers: int = 8) -> Costs:
        return Costs(MODELS["8b"], GPUS["h100"], self.WORK, way, workers, utilisation=0.5)

    def with_disk(self, bytes_per_second: float) -> Costs:
        cached = self.costs(CACHED)
        return replace(cached, gpu=replace(cached.gpu, disk_bytes_per_second=bytes_per_second))

    def test_a_cache_has_paid_when_both_have_taken_as_long(self) -> None:
        full, cached = self.costs(FULL), self.costs(CACHED)
        epochs = crossings.epochs_to_repay(full, cached)
        assert epochs is not None
        steps = epochs * -(-1000 // 16)
        assert cached.build_seconds + steps * cached.step_seconds == pytest.approx(steps * full.step_seconds)
        assert crossings.epochs_to_repay(full, self.with_disk(1e6)) is None

    def test_a_disk_that_keeps_up_and_one_that_breaks_even(self) -> None:
        full, cached = self.costs(FULL), self.costs(CACHED)
        enough = self.with_disk(crossings.disk_to_keep_up(cached))
        assert enough.storage_seconds == pytest.approx(enough.compute_seconds)
        slow = self.with_disk(crossings.disk_to_break_even(full, cached))
        assert slow.step_seconds == pytest.approx(full.step_seconds)

    def test_gathers_hide_behind_as_many_rows(self) -> None:
        sharded = self.costs(CACHED_ZERO3)
        rows = crossings.rows_to_hide_gathers(sharded)
        few, many = (replace(sharded, workload=replace(self.WORK, batch_rows=int(n) * 8 // 2)) for n in (rows - 1, rows + 1))
        assert few.bound_by == "network"
        assert many.bound_by != "network"

    def test_one_worker_less_or_one_token_more_does_not_fit(self) -> None:
        shape = MODELS["70b"]
        sharded = replace(self.costs(CACHED_ZERO3), shape=shape, workload=replace(self.WORK, edited_layers=(50, 62, 77)))
        least, longest = crossings.least_workers(sharded), crossings.longest_prompt(sharded)
        assert least is not None
        assert longest is not None
        assert replace(sharded, workers=least).fits
        assert not replace(sharded, workers=least // 2).fits
        fits = [replace(sharded, workload=replace(sharded.workload, prompt_tokens=n)).fits for n in (longest, longest + 1)]
        assert fits == [True, False]
        assert crossings.least_workers(replace(sharded, shape=MODELS["405b"], way=FULL)) is None

    def test_rows_on_a_node_fill_its_disks(self) -> None:
        cached = self.costs(CACHED)
        rows = crossings.rows_on_a_node(cached)
        assert rows * cached.cached_row_bytes <= 8 * cached.gpu.disk_bytes < (rows + 1) * cached.cached_row_bytes


class TestCommand:
    def test_it_writes_what_it_calculates(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", "--gpu", "b200", "--trials", "4", "--output", str(tmp_path)]) == 0
        values = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
        assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
        assert len(values["records"]) == 12
        record = next(r for r in values["records"] if (r["model"], r["way"]) == ("70b", "cached_zero3"))
        planned = plan_costs(MODELS["70b"], PlanOptions(gpu="b200", trials=4))["cached_zero3"]
        assert record["sweep_gpu_hours"] == planned.gpu_hours(4)
        assert record["step_flops"] == planned.step_flops
        assert values["workload"]["crossings"].keys() == {"8b", "70b", "405b"}
        said = capsys.readouterr().out
        assert "cached_zero3" in said
        assert "! does not fit one b200" in said

    def test_a_model_of_ones_own(self, base_folder: Path, tmp_path: Path) -> None:
        argv = ["plan", "--model.path", str(base_folder), "--prompt_tokens", "20", "--answer_tokens", "8"]
        argv += ["--adapter.relative_depths", "0.5", "--output", str(tmp_path)]
        assert main(argv) == 0
        records = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["records"]
        assert {record["model"] for record in records} == {base_folder.name}
        assert {tuple(record["edited_layers"]) for record in records} == {(2,)}

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["plan", "--gpu", "h101"], r"`--gpu`: .*'h100'.*, got 'h101'; `--help`"),
            (["plan", "--train.num_workers", "0"], "`--train.num_workers`: .*greater than 0, got '0'"),
            (["plan", "--train.num_workers", "3"], "must be a multiple of `--train.num_workers`, got 16 and 3"),
            (["plan", "--adapter.relative_depths", "0.5,0.2"], "increasing numbers from 0 to below 1.*got '0.5,0.2'"),
            (["plan", "--utilisation", "1.5"], "`--utilisation`: .*less than or equal to 1, got '1.5'"),
            (["step", "--trials", "2"], "`--trials` belongs to `plan` alone, got it with `step`"),
        ],
    )
    def test_a_wrong_option_is_refused(self, argv: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            parse_options(argv)

    def test_a_row_beyond_the_context_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="must fit the context of 8b, 131072 tokens, got 131073"):
            main(["plan", "--prompt_tokens", "131000", "--answer_tokens", "73", "--output", str(tmp_path)])
        assert not (tmp_path / "plan.json").exists()

    def test_a_folder_without_a_model_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"must be a folder with a config\.json"):
            main(["plan", "--model.path", str(tmp_path / "nowhere"), "--output", str(tmp_path)])


SCALING = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
TABLES = re.findall(r"```sh\npython pipelines/benchmark\.py (plan[^\n]*)\n```\n\n```text\n(.*?)```", SCALING, flags=re.DOTALL)


@pytest.mark.parametrize(("command", "table"), TABLES, ids=[command for command, _table in TABLES])
def test_the_tables_of_the_page_on_scaling_are_what_its_commands_print(command: str, table: str) -> None:
    _name, options = parse_options(command.split())
    assert run(options).table == table


def test_every_table_of_the_page_on_scaling_is_checked() -> None:
    assert len(TABLES) == SCALING.count("```text") == 6
