"""`memory`: what a training worker holds at its worst, with the whole base, with its upper part, with half of that.

Each way trains a few steps in fresh processes (:mod:`pipelines.benchmarks.memory_worker`), which watch their own memory.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from grun.errors import ConfigError
from grun.lm import load_frozen_lm
from grun.lm.cache_build import finish, probe_cache
from grun.lm.frozen import count_parameters
from pipelines.benchmarks.figures import ratio_figure
from pipelines.benchmarks.harness import Options, Report, Row, plain
from pipelines.benchmarks.workload import Geometry, make_recipe, make_tokenizer, new_lm, new_training, read_rows
from pipelines.cluster import worker_environment
from pipelines.console import note

__all__ = ["run"]

_STEPS = 2
_ROOT = Path(__file__).parents[2]
_ITEMS = ("base", "adapter", "optimizer", "loading", "loaded", "rows", "activations", "cache_pages")
"""Weights; adapter; its moments; anonymous pages while and after loading; tokenised rows and adapter; what steps add; mapped cache."""


@dataclass(frozen=True)
class _Case:
    """One way to train, and on how many processes."""

    name: str
    cached: bool
    zero_stage: int = 0
    workers: int = 1


_CASES = (_Case("full", cached=False), _Case("cached", cached=True), _Case("cached_zero3", cached=True, zero_stage=3, workers=2))


def run(options: Options) -> Report:
    """Measure every way, and compare its peak with that of the whole base.

    Raises:
        ConfigError: the system does not say what a process holds.
        DataError: TOFU is not where it should be.
    """
    if not Path("/proc/self/status").is_file():
        raise ConfigError("benchmark `memory` reads /proc/self/status, got a system without one; run it on Linux")
    geometry = Geometry.toy() if options.tiny else Geometry(hidden_size=1024, num_heads=16)
    base = _saved_base(geometry, options)
    rows: list[Row] = []
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        cache, share = _cache(base, options, Path(folder))
        whole = 4 * count_parameters(base)
        for case in _CASES:
            note(f"memory: training {case.name} on {case.workers} process(es)")
            worst = max(_train(case, base, cache, options, Path(folder)), key=lambda found: found["peak"])
            peaks[case.name] = worst["peak"]
            rows += [plain(f"memory.{case.name}.{item}", worst[item] / 1e6, "MB") for item in ("peak", "peak_resident", *_ITEMS)]
            if case.cached:
                bound = 1.15 * share * whole + worst["adapter"] + worst["optimizer"] + worst["activations"]
                rows.append(plain(f"memory.{case.name}_over_bound", worst["peak"] / 1e6, "MB", bound / 1e6))
    rows += [
        plain(f"memory.{name}_over_full", peaks[name] / 1e6, "MB", peaks["full"] / 1e6) for name in ("cached", "cached_zero3")
    ]
    title = f"Peak memory of a training worker: {geometry.num_layers} blocks, {geometry.hidden_size} wide, float32"
    workload = {
        "geometry": vars(geometry),
        "parameters": whole // 4,
        "blocks_above_the_cut": share,
        "steps": _STEPS,
        "forget_rows": make_recipe(options, "gd").train.batch_size,
    }
    return Report(rows, ratio_figure(title, rows), workload)


def _saved_base(geometry: Geometry, options: Options) -> Path:
    """The base as a folder, made once."""
    folder = options.work / f"base-{geometry.num_layers}x{geometry.hidden_size}"
    if not (folder / "config.json").is_file():
        note(f"memory: writing a base to {folder}")
        lm = new_lm(geometry, make_tokenizer(read_rows(options), geometry))
        lm.tokenizer.save_pretrained(folder)
        lm.model.save_pretrained(folder)
    return folder


def _cache(base: Path, options: Options, folder: Path) -> tuple[Path, float]:
    """The cache of the rows that will be trained on, and the share of the blocks that are above the cut."""
    note("memory: building the cache")
    recipe = make_recipe(options, "gd")
    lm = load_frozen_lm(str(base))
    training = new_training(lm, recipe, read_rows(options))
    examples = training.examples(_STEPS)
    cache = training.build_cache(examples, folder / "cache")
    finish(cache.folder, cache.spec, probe_cache(lm, cache, examples[:4]))
    return cache.folder, (lm.num_layers - 1 - training.cut) / lm.num_layers


def _train(case: _Case, base: Path, cache: Path, options: Options, folder: Path) -> list[dict[str, float]]:
    """Run the processes of a case; what each of them held."""
    values = {
        "data": str(options.data.absolute()),
        "tiny": options.tiny,
        "zero_stage": case.zero_stage,
        "base": str(base),
        "cache": str(cache) if case.cached else None,
        "steps": _STEPS,
    }
    file = folder / f"{case.name}.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    shared = {"WORLD_SIZE": str(case.workers), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT), "DS_ACCELERATOR": "cpu"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.benchmarks.memory_worker", str(file)],
            env={**os.environ, **worker_environment(use_gpu=False), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(case.workers)
    ]
    try:
        said = [worker.communicate()[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for worker, lines in zip(workers, said, strict=True):
        if worker.returncode:
            raise RuntimeError(f"a worker of {case.name} ended with status {worker.returncode}:\n{lines[-3000:]}")
    return [json.loads((folder / f"{case.name}-{rank}.json").read_text(encoding="utf-8")) for rank in range(case.workers)]
