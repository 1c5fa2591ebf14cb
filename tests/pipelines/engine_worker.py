"""One worker of `test_deepspeed_engine.py`: trains each case on its engine and writes down what came out.

    RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 python engine_worker.py <folder>

The folder holds `cases.json` ({name: {"recipe", "prepared", "base"}}); out come `<name>-<rank>.{safetensors,json}`.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from grun.config import Recipe
from grun.training import Progress, build_task, fit
from pipelines.deepspeed_engine import DeepSpeedEngine, resident_share
from pipelines.prepared import read_prepared
from pipelines.worker import build_engine


def train(case: dict[str, Any], target: Path) -> None:
    recipe = Recipe.parse(case["recipe"])
    request, splits = read_prepared(Path(case["prepared"]))
    engine = build_engine(recipe, case["base"])
    task = build_task(recipe, splits, request, engine.lm)
    metrics: list[dict[str, float]] = []

    def record(progress: Progress) -> None:
        metrics.append(dict(progress.metrics))

    shares = [resident_share(engine.lm)]
    fit(engine, task.adapter, task.objective, task.sampler, task.optimizer, read_layer=task.read_layer, callbacks=[record])
    shares.append(resident_share(engine.lm))
    parameters = list(task.adapter.parameters())
    save_file({name: value.contiguous() for name, value in task.adapter.state_dict().items()}, f"{target}.safetensors")
    outcome = {
        "engine": type(engine).__name__,
        "metrics": metrics,
        "shares": shares,
        "adapter_is_whole": all(not hasattr(p, "ds_id") and p.dtype == torch.float32 for p in parameters),
        "base_dtypes": sorted({str(p.dtype) for p in engine.lm.model.parameters()}),
    }
    Path(f"{target}.json").write_text(json.dumps(outcome), encoding="utf-8")
    if isinstance(engine, DeepSpeedEngine):
        engine.close()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    for name, case in json.loads((folder / "cases.json").read_text(encoding="utf-8")).items():
        train(case, folder / f"{name}-{rank}")
        gc.collect()  # while a sharding engine is alive, models are loaded in shards
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
