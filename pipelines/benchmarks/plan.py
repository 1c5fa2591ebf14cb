"""`plan`: what a step, a run and a sweep cost on models and GPUs that are not at hand, calculated and not measured.

Formulas are in :mod:`pipelines.benchmarks.plan_costs`; tests hold them against counted operations, real caches and real
workers at small size. Times are those of perfect overlap: a step takes as long as its longest part.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from grun.errors import ConfigError
from pipelines.benchmarks import plan_crossings as crossings
from pipelines.benchmarks.harness import Options, Report, Row, plain
from pipelines.benchmarks.plan_costs import WAYS, Costs, Workload
from pipelines.benchmarks.plan_model import read_model_shape
from pipelines.benchmarks.plan_options import PlanOptions
from pipelines.benchmarks.plan_shapes import GPUS, MODELS, ModelShape

__all__ = ["plan_costs", "run"]

ByWay = Mapping[str, Costs]


def run(options: Options) -> Report:
    """Calculate every way for every model.

    Raises:
        ConfigError: a row is longer than a model's context.
        ModelError: the model folder is not what it should be.
    """
    plan = options.plan
    shapes = list(MODELS.values()) if plan.model_path is None else [read_model_shape(plan.model_path)]
    models = {shape.name: plan_costs(shape, plan) for shape in shapes}
    rows = [row for name, ways in models.items() for row in _rows(name, ways)]
    records = [_record(costs, plan) for ways in models.values() for costs in ways.values()]
    met = {name: _crossings(ways) for name, ways in models.items()}
    tables = [[_summary(record) for record in records], [_shown(name, crossed) for name, crossed in met.items()]]
    table = "\n".join([*map(_aligned, tables), f"! does not fit one {plan.gpu}\n"])
    workload = {**plan.model_dump(mode="json"), "gpu_numbers": vars(GPUS[plan.gpu]), "crossings": met}
    return Report(rows, _figure(models, plan), workload, records=records, table=table)


def plan_costs(shape: ModelShape, plan: PlanOptions) -> dict[str, Costs]:
    """The costs of every way on one model.

    Raises:
        ConfigError: a row is longer than the model's context.
    """
    workload = Workload(
        forget_rows=plan.forget_rows,
        retain_rows=plan.retain_rows,
        prompt_tokens=plan.prompt_tokens,
        answer_tokens=plan.answer_tokens,
        batch_rows=plan.batch_size,
        epochs=plan.epochs,
        edited_layers=plan.adapter.resolve_layers(shape.num_layers),
        rank=plan.adapter.rank,
    )
    if workload.row_tokens > shape.context_tokens:
        raise ConfigError(
            f"a row must fit the context of {shape.name}, {shape.context_tokens} tokens, got {workload.row_tokens}; "
            "lower `--prompt_tokens` or `--answer_tokens`"
        )
    return {way.name: Costs(shape, GPUS[plan.gpu], workload, way, plan.num_workers, plan.utilisation) for way in WAYS}


def _rows(model: str, ways: ByWay) -> list[Row]:
    """Times against the full pass on as many GPUs (whether or not it fits them), memory against that of the GPU."""
    rows: list[Row] = []
    for name, costs in ways.items():
        full = None if name == "full" else ways["full"].step_seconds
        rows += [
            plain(f"plan.{model}.{name}.step", costs.step_seconds, "s", full),
            plain(f"plan.{model}.{name}.memory", costs.memory_bytes / 1e9, "GB", costs.gpu.memory_bytes / 1e9),
        ]
    return rows


def _record(costs: Costs, plan: PlanOptions) -> dict[str, Any]:
    """Everything that was calculated of one model and way."""
    return {
        "model": costs.shape.name,
        "way": costs.way.name,
        "edited_layers": costs.workload.edited_layers,
        "parameters": costs.shape.num_parameters,
        "memory_bytes": costs.memory_bytes,
        "weight_bytes": costs.weight_bytes,
        "gathered_bytes": costs.gathered_bytes,
        "adapter_bytes": costs.adapter_bytes,
        "saved_bytes": costs.saved_bytes,
        "logits_bytes": costs.logits_bytes,
        "fits": costs.fits,
        "step_flops": costs.step_flops,
        "received_bytes_a_step": costs.received_bytes,
        "read_bytes_a_step": costs.read_step_bytes,
        **{f"{part}_seconds": seconds for part, seconds in costs.parts_seconds.items()},
        "step_seconds": costs.step_seconds,
        "bound_by": costs.bound_by,
        "cache_bytes": costs.cache_bytes,
        "build_seconds": costs.build_seconds,
        "build_fits": costs.build_fits,
        "run_flops": costs.workload.num_steps * costs.step_flops + (costs.build_flops if costs.way.cached else 0),
        "received_bytes_a_run": costs.workload.num_steps * costs.received_bytes,
        "read_bytes_a_run": costs.workload.num_steps * costs.read_step_bytes,
        "run_gpu_hours": costs.gpu_hours(),
        "sweep_gpu_hours": costs.gpu_hours(plan.trials),
    }


def _crossings(ways: ByWay) -> dict[str, float | None]:
    """Where the costs of one model cross."""
    full, cached = ways["full"], ways["cached"]
    full_sharded, cached_sharded = ways["full_zero3"], ways["cached_zero3"]
    return {
        **{f"least_gpus_{name}": crossings.least_workers(costs) for name, costs in ways.items()},
        "longest_prompt_full_zero3": crossings.longest_prompt(full_sharded),
        "longest_prompt_cached_zero3": crossings.longest_prompt(cached_sharded),
        "epochs_to_repay": crossings.epochs_to_repay(full, cached),
        "rows_on_a_node": crossings.rows_on_a_node(cached),
        "disk_to_keep_up_bytes_per_second": crossings.disk_to_keep_up(cached),
        "disk_to_break_even_bytes_per_second": crossings.disk_to_break_even(full, cached),
        "rows_to_hide_gathers_full": crossings.rows_to_hide_gathers(full_sharded),
        "rows_to_hide_gathers_cached": crossings.rows_to_hide_gathers(cached_sharded),
    }


def _summary(record: Mapping[str, Any]) -> dict[str, str]:
    """A line of the first table."""
    return {
        "model": record["model"],
        "way": record["way"],
        "memory GB": f"{record['memory_bytes'] / 1e9:.1f}{'' if record['fits'] else ' !'}",
        "PFLOP": _short(record["step_flops"] / 1e15),
        **{f"{part} ms": _short(record[f"{part}_seconds"] * 1e3) for part in ("compute", "weights", "network", "storage")},
        "step ms": _short(record["step_seconds"] * 1e3),
        "bound by": record["bound_by"],
        "cache TB": _short(record["cache_bytes"] / 1e12),
        "build s": f"{_short(record['build_seconds'])}{' !' if record['build_seconds'] and not record['build_fits'] else ''}",
        "run GPU h": _short(record["run_gpu_hours"]),
        "sweep GPU h": _short(record["sweep_gpu_hours"]),
    }


def _shown(model: str, met: Mapping[str, float | None]) -> dict[str, str]:
    """A line of the second table."""

    def whole(name: str) -> str:
        return "none" if met[name] is None else f"{met[name]:.0f}"

    def short(name: str, unit: float = 1.0) -> str:
        value = met[name]
        return "never" if value is None else _short(value / unit, digits=2)

    return {
        "model": model,
        "GPUs full/cached": f"{whole('least_gpus_full')}/{whole('least_gpus_cached')}",
        "with ZeRO-3": f"{whole('least_gpus_full_zero3')}/{whole('least_gpus_cached_zero3')}",
        "longest prompt, ZeRO-3": f"{whole('longest_prompt_full_zero3')}/{whole('longest_prompt_cached_zero3')}",
        "epochs to repay": short("epochs_to_repay"),
        "rows on a node": short("rows_on_a_node"),
        "GB/s a GPU to keep up": short("disk_to_keep_up_bytes_per_second", 1e9),
        "to break even": short("disk_to_break_even_bytes_per_second", 1e9),
        "rows a GPU to hide gathers": f"{short('rows_to_hide_gathers_full')}/{short('rows_to_hide_gathers_cached')}",
    }


def _short(value: float, digits: int = 3) -> str:
    """A few digits, and no powers of ten for large numbers."""
    return f"{value:.{digits}g}" if value < 10**digits else f"{float(f'{value:.{digits}g}'):,.0f}"


def _aligned(lines: Sequence[Mapping[str, str]]) -> str:
    cells = [list(lines[0]), *(list(line.values()) for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "".join("  ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)).rstrip() + "\n" for line in cells)


_MARKS = {"compute": ("#D55E00", "o"), "weights": ("#0072B2", "s"), "network": ("#009E73", "^"), "storage": ("#CC79A7", "D")}
"""Okabe and Ito's colours, which colour-blind readers tell apart; parts differ in marker as well."""


def _figure(models: Mapping[str, ByWay], plan: PlanOptions) -> Figure:
    """The parts of a step, and the memory of a worker against that of the GPU; a line for every model and way."""
    shown = [costs for ways in models.values() for costs in ways.values()][::-1]
    figure = Figure(figsize=(10.0, 1.6 + 0.3 * len(shown)), layout="constrained")
    figure.suptitle(f"{plan.num_workers} x {plan.gpu}, calculated; a step takes as long as its rightmost mark", fontsize="medium")
    times, memory = figure.subplots(1, 2, sharey=True, subplot_kw={"xscale": "log"})
    for part, (color, marker) in _MARKS.items():
        places = [(costs.parts_seconds[part], place) for place, costs in enumerate(shown) if costs.parts_seconds[part] > 0]
        times.plot(*zip(*places, strict=True), linestyle="", marker=marker, color=color, label=part)
    memory.barh(range(len(shown)), [costs.memory_bytes / 1e9 for costs in shown], height=0.6, color="#0072B2", alpha=0.75)
    memory.axvline(shown[0].gpu.memory_bytes / 1e9, color="black", linestyle="--", linewidth=1.0)
    times.set_yticks(range(len(shown)), [f"{costs.shape.name} {costs.way.name}" for costs in shown], fontsize="small")
    times.set_xlabel("seconds of a step, by part")
    memory.set_xlim(left=1)
    memory.set_xlabel("GB of a worker (line: what the GPU has)")
    times.legend(frameon=False, fontsize="small")
    for axes in (times, memory):
        axes.xaxis.set_major_locator(LogLocator())
        # plain numbers: powers would be set by a formula parser, which is slow to load and warns
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure
