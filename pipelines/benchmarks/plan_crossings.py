"""Where costs cross: how many GPUs a base needs, when a cache has paid, what disks and links must give. Free of torch."""

from dataclasses import replace

from pipelines.benchmarks.plan_costs import Costs
from pipelines.benchmarks.plan_shapes import GPUS_PER_NODE

__all__ = [
    "disk_to_break_even",
    "disk_to_keep_up",
    "epochs_to_repay",
    "least_workers",
    "longest_prompt",
    "rows_on_a_node",
    "rows_to_hide_gathers",
]


def least_workers(costs: Costs) -> int | None:
    """The least number of workers, a power of two, on which the batch fits; None if it does not on as many as there are forget rows."""
    workers = 1
    while workers <= costs.workload.batch_rows:
        if replace(costs, workers=workers).fits:
            return workers
        workers *= 2
    return None


def longest_prompt(costs: Costs) -> int | None:
    """Tokens of the longest prompt that fits the GPUs and the model's context; None if none does."""
    low, high = 0, costs.shape.context_tokens - costs.workload.answer_tokens + 1
    while high - low > 1:  # memory grows with the prompt
        middle = (low + high) // 2
        if replace(costs, workload=replace(costs.workload, prompt_tokens=middle)).fits:
            low = middle
        else:
            high = middle
    return low or None


def epochs_to_repay(full: Costs, cached: Costs) -> float | None:
    """Epochs after which cached steps have made up for the building of the cache; None where they are not faster."""
    saved = full.step_seconds - cached.step_seconds
    steps_an_epoch = cached.workload.num_steps / cached.workload.epochs
    return cached.build_seconds / (steps_an_epoch * saved) if saved > 0 else None


def rows_on_a_node(cached: Costs) -> int:
    """Rows whose cache fills the disks of one node; every node that trains needs all of them."""
    return int(GPUS_PER_NODE * cached.gpu.disk_bytes // cached.cached_row_bytes)


def disk_to_keep_up(cached: Costs) -> float:
    """Bytes a second and GPU above which a step does not wait for the cache."""
    others = max(seconds for part, seconds in cached.parts_seconds.items() if part != "storage")
    return cached.read_step_bytes / cached.workers / others


def disk_to_break_even(full: Costs, cached: Costs) -> float:
    """Bytes a second and GPU below which reading the cache takes longer than a full step."""
    return cached.read_step_bytes / cached.workers / full.step_seconds


def rows_to_hide_gathers(sharded: Costs) -> float:
    """Rows a worker above which a step computes longer than it gathers: the one grows with them, the other does not."""
    rows = sharded.workload.step_rows / sharded.workers
    return rows * sharded.network_seconds / sharded.compute_seconds
