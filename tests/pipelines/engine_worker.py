"""One worker of `test_deepspeed_engine.py`: trains each case on its engine and writes down what came out.

    RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 python engine_worker.py <folder>

The folder holds `cases.json` ({name: {"recipe", "prepared", "base", "cache"}}); out come `<name>-<rank>.{safetensors,json}`.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from grun.config import Recipe
from grun.lm import FrozenLM
from grun.training import Progress, build_task, fit
from pipelines.deepspeed_engine import DeepSpeedEngine, resident_share
from pipelines.prepared import read_prepared
from pipelines.worker import build_engine


class Peaks:
    """The most that this worker ever held of a sharded base: in one gathering while it is loaded, and at any time in a step.

    And how many parameters were built at all.
    """

    def __init__(self) -> None:
        self.gathered_while_loading = 0
        self.built = 0
        self.held_in_a_step = 0.0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Look whenever DeepSpeed gathers parameters to fill them."""
        import deepspeed

        enter, peaks = deepspeed.zero.GatheredParameters.__enter__, self

        def watched(context: Any) -> Any:
            entered = enter(context)
            peaks.gathered_while_loading = max(
                peaks.gathered_while_loading, sum(p.numel() for p in getattr(context, "params", ()))
            )
            return entered

        born = deepspeed.zero.Init._post_init_method

        def counted(init: Any, module: torch.nn.Module) -> None:
            peaks.built += sum(p.numel() for p in module.parameters(recurse=False) if not hasattr(p, "ds_id"))
            born(init, module)

        with (
            patch.object(deepspeed.zero.GatheredParameters, "__enter__", watched),
            patch.object(deepspeed.zero.Init, "_post_init_method", counted),
        ):
            yield

    @contextmanager
    def stepping(self, lm: FrozenLM) -> Iterator[None]:
        """Look whenever ZeRO-3 has fetched a module's parameters, forward or backward."""
        from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

        fetch, peaks = Coordinator.fetch_sub_module, self

        def watched(coordinator: Any, *args: Any, **kwargs: Any) -> None:
            fetch(coordinator, *args, **kwargs)
            peaks.held_in_a_step = max(peaks.held_in_a_step, resident_share(lm))

        with patch.object(Coordinator, "fetch_sub_module", watched):
            yield


def train(case: dict[str, Any], target: Path) -> None:
    recipe = Recipe.parse(case["recipe"])
    request, splits = read_prepared(Path(case["prepared"]))
    peaks = Peaks()
    with peaks.loading():
        engine = build_engine(recipe, case["base"], case["cache"])
    task = build_task(recipe, splits, request, engine.lm)
    metrics: list[dict[str, float]] = []

    def record(progress: Progress) -> None:
        metrics.append(dict(progress.metrics))

    shares = [resident_share(engine.lm)]
    with peaks.stepping(engine.lm):
        fit(engine, task.adapter, task.objective, task.sampler, task.optimizer, read_layer=task.read_layer, callbacks=[record])
    shares.append(resident_share(engine.lm))
    parameters = list(task.adapter.parameters())
    save_file({name: value.contiguous() for name, value in task.adapter.state_dict().items()}, f"{target}.safetensors")
    outcome = {
        "engine": type(engine).__name__,
        "metrics": metrics,
        "shares": shares,
        "base_parameters": [name for name, _parameter in engine.lm.model.named_parameters()],
        "gathered_while_loading": peaks.gathered_while_loading / sum(map(_whole_size, engine.lm.model.parameters())),
        "built": peaks.built,
        "held_in_a_step": peaks.held_in_a_step,
        "adapter_is_whole": all(not hasattr(p, "ds_id") and p.dtype == torch.float32 for p in parameters),
        "base_dtypes": sorted({str(p.dtype) for p in engine.lm.model.parameters()}),
    }
    Path(f"{target}.json").write_text(json.dumps(outcome), encoding="utf-8")
    if isinstance(engine, DeepSpeedEngine):
        engine.close()


def _whole_size(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


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
