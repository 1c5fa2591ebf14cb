"""A model and a workload so small that everything `plan` calculates can be counted."""

from pipelines.benchmarks.plan_costs import WAYS, Workload
from pipelines.benchmarks.plan_shapes import llama_shape

__all__ = ["CACHED", "CACHED_ZERO3", "FULL", "FULL_ZERO3", "SHAPE", "WORK"]

SHAPE = llama_shape(
    "small",
    num_layers=4,
    hidden_size=64,
    inner_size=96,
    num_heads=4,
    num_key_heads=2,
    vocab_size=160,
    context_tokens=64,
)
WORK = Workload(
    forget_rows=6,
    retain_rows=6,
    prompt_tokens=11,
    answer_tokens=5,
    batch_rows=3,
    epochs=2,
    edited_layers=(1, 3),
    rank=4,
    width_bytes=4,
)
FULL, CACHED, FULL_ZERO3, CACHED_ZERO3 = WAYS
