"""One training worker of the benchmark `memory`: trains a few steps and writes down what it held.

    RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 python -m pipelines.benchmarks.memory_worker <case>.json

Counted are anonymous pages, above what the imports take, and the pages of the weight files that a base which is loaded
in its own precision is mapped from: it computes with them in every step. Pages of a prefix cache are mapped too, but most
of them are read once an epoch and the system may drop them; they stand beside the sum, and so does all that is resident.
"""

import gc
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from grun.training import Engine, Task
from grun.training.step import forward
from pipelines.benchmarks.harness import Options
from pipelines.benchmarks.workload import make_recipe, new_training, read_rows
from pipelines.deepspeed_engine import DeepSpeedEngine, resident_share
from pipelines.worker import build_engine

__all__ = ["Watch", "held", "main", "mapped"]

_EVERY = 0.005
"""Seconds between two looks; a step takes hundreds of times as long."""


def held(field: str = "RssAnon") -> int:
    """Bytes that this process holds by `/proc/self/status`: RssAnon, RssFile, VmRSS, VmHWM."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status does not know {field}")


def mapped(folder: Path) -> int:
    """Resident bytes of the files below a folder that this process has mapped."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        key, *values = line.split(maxsplit=5)
        if not key.endswith(":"):  # the head of a mapping: its last field is the path
            inside = len(values) == 5 and Path(values[-1]).is_relative_to(folder)
        elif inside and key == "Rss:":
            total += 1024 * int(values[0])
    return total


class Watch:
    """The most anonymous memory that the process held in a while."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look every few milliseconds, from another thread: torch lets it run while it computes."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _look(self) -> None:
        while not self._done.is_set():
            self.peak = max(self.peak, held())
            self._done.wait(_EVERY)
        self.peak = max(self.peak, held())


def main(file: Path) -> None:
    """Run one case on this process."""
    case = json.loads(file.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rendezvous = file.with_suffix(".rendezvous").as_uri()
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    options = Options(data=Path(case["data"]), output=file.parent, repeats=1, tiny=case["tiny"])
    recipe, splits = make_recipe(options, "gd", zero_stage=case["zero_stage"]), read_rows(options)
    gc.collect()
    imports, resident_imports = held(), held("VmRSS")
    loading, training = Watch(), Watch()
    with loading.running():
        engine = build_engine(recipe, case["base"], case["cache"])
    gc.collect()
    loaded = held()
    task = new_training(engine.lm, recipe, splits).task
    gc.collect()
    before = held()
    with training.running():
        _train(engine, task, case["steps"])
    weights = mapped(Path(case["base"]).resolve())
    found = {
        "peak": max(loading.peak, training.peak + weights) - imports,
        "peak_resident": held("VmHWM") - resident_imports,
        "base": _base_bytes(engine),
        "adapter": _bytes(task.adapter.parameters()),
        "optimizer": _bytes(value for state in task.optimizer.adamw.state.values() for value in state.values()),
        "loading": loading.peak - imports,
        "loaded": loaded - imports,
        "rows": before - loaded,
        "activations": max(0, training.peak - before),
        "cache_pages": 0 if case["cache"] is None else mapped(Path(case["cache"]).resolve()),
    }
    file.with_name(f"{file.stem}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    if isinstance(engine, DeepSpeedEngine):
        engine.close()
    dist.destroy_process_group()


def _train(engine: Engine, task: Task, steps: int) -> None:
    for step in range(steps):
        batch = task.sampler.batch(step, rank=engine.rank, world_size=engine.world_size)
        output = task.objective(forward(engine.base, task.adapter, batch, task.objective, read_layer=task.read_layer), step + 1)
        engine.backward(output.loss)
        task.optimizer.step(engine, step, {"train/loss": output.loss, **output.terms})


def _base_bytes(engine: Engine) -> float:
    """Bytes of the base's weights that this worker holds between two steps."""
    whole = sum(int(getattr(p, "ds_numel", p.numel())) * p.element_size() for p in engine.lm.model.parameters())
    return resident_share(engine.lm) * whole


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
