"""The benchmarks by name: what `python pipelines/benchmark.py <name>` knows."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.benchmarks import (
    gpu,
    inference,
    memory,
    nodes,
    overhead,
    plan,
    quality,
    scale,
    sequence,
    serve,
    soak,
    stack,
    step,
    sweep,
)
from pipelines.benchmarks.harness import Options, Report

__all__ = ["BENCHMARKS", "Benchmark"]


@dataclass(frozen=True)
class Benchmark:
    """One entry."""

    summary: str
    """What it measures, in a line."""
    run: Callable[[Options], Report]
    """Measures it."""


BENCHMARKS: dict[str, Benchmark] = {
    "step": Benchmark("a training step: pyreft, full pass, prefix cache; GD, NPO, IDK, RMU and long prompts", step.run),
    "sweep": Benchmark("one more trial of a sweep against the same run alone, and sixteen of them", sweep.run),
    "overhead": Benchmark(
        "Ray Train with DeepSpeed against a bare loop, and how soon a trial takes its first step", overhead.run
    ),
    "memory": Benchmark("peak memory of a training worker: full, cached, cached and sharded by ZeRO-3", memory.run),
    "inference": Benchmark("prefill and decoding with an adapter against the base alone", inference.run),
    "stack": Benchmark("prefill and decoding with stacks of 1, 10 and 50 adapters against the base alone and one", stack.run),
    "serve": Benchmark("a served champion against the base alone: throughput, latency, hot swaps", serve.run),
    "scale": Benchmark("how costs grow with prompt length, depth, width and number of examples", scale.run),
    "nodes": Benchmark("the same sweep on 1, 2 and 4 small nodes, cut from this machine by control groups", nodes.run),
    "quality": Benchmark(
        "GRUN, LoReFT without a gate, LoRA and full fine-tuning with GD, NPO and IDK: forgetting, utility, parameters, CPU time",
        quality.run,
    ),
    "sequence": Benchmark(
        "six requests one after another: forgetting, utility, false opens and CPU time, three ways to keep their gates apart",
        sequence.run,
    ),
    "soak": Benchmark(
        "hours of sweeps, requests and hot swaps with random kills: what is lost, what is held, what grows", soak.run
    ),
    "plan": Benchmark("calculated: a step, a run and a sweep on Llamas of 8B, 70B and 405B, and where costs cross", plan.run),
    "gpu": Benchmark("a training step of Llama-3.1-8B's shape on a CUDA device", gpu.run),
}
