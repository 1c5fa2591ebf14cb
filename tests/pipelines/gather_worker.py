"""One worker of `test_plan_costs.py`: runs steps on a sharded base, full and cached, and writes down what was gathered in the last one.

    RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 python gather_worker.py <folder>

The folder holds `base/`, `cache/` and `case.json`; out comes `gathered-<rank>.json`.
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

from grun.config import AdapterConfig, ModelConfig
from grun.data.prompts import Example
from grun.interventions import build_adapter
from grun.lm import PrefixCache
from pipelines.deepspeed_engine import DeepSpeedEngine

STEPS = 4
"""ZeRO-3 watches the first one, and knows the order from then on."""


class Gathers:
    """What was gathered: numbers in all, and the most that lay there at a time."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine = engine
        self.total = self.peak = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is asked of the other workers, and look whenever a module's parameters have been fetched."""
        from deepspeed.runtime.zero import partition_parameters
        from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

        gather, fetch = partition_parameters._dist_allgather_fn, Coordinator.fetch_sub_module

        def counted(mine: torch.Tensor, whole: torch.Tensor, group: Any = None) -> Any:
            self.total += whole.numel()
            return gather(mine, whole, group)

        def watched(coordinator: Any, *args: Any, **kwargs: Any) -> None:
            fetch(coordinator, *args, **kwargs)
            # between its uses a sharded one is empty
            self.peak = max(self.peak, sum(p.numel() for p in parameters_of(self.engine) if len(p.ds_shape) > 1))

        with (
            patch.object(partition_parameters, "_dist_allgather_fn", counted),
            patch.object(Coordinator, "fetch_sub_module", watched),
        ):
            yield


def run(folder: Path, case: dict[str, Any], *, cached: bool) -> dict[str, float]:
    cache = PrefixCache.open(folder / "cache", verify=False) if cached else None
    engine = DeepSpeedEngine(ModelConfig(), str(folder / "base"), cache, case["layers"][0] if cached else None)
    shape = {"hidden_size": engine.lm.hidden_size, "num_layers": engine.lm.num_layers}
    adapter = build_adapter(AdapterConfig(layers=case["layers"], rank=2), **shape, seed=0)
    examples = [Example(digest, tuple(ids), prompt) for digest, ids, prompt in case["examples"]]
    gathers = Gathers(engine)
    with gathers.counting():
        for _ in range(STEPS):
            gathers.total = gathers.peak = 0
            engine.backward(engine.base.answers(examples, adapter).nll.mean())
    held = sum(p.ds_numel if p.ds_persist else p.ds_tensor.numel() for p in parameters_of(engine))
    engine.close()
    return {"gathered_bytes": 4 * gathers.total, "peak_bytes": 4 * gathers.peak, "weight_bytes": 4 * held}


def parameters_of(engine: DeepSpeedEngine) -> list[Any]:
    """Parameters of the base, with what DeepSpeed has put on them."""
    return list(engine.lm.model.parameters())


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    case, found = json.loads((folder / "case.json").read_text(encoding="utf-8")), {}
    for way in ("full_zero3", "cached_zero3"):
        found[way] = run(folder, case, cached=way == "cached_zero3")
        gc.collect()  # while a sharding engine is alive, models are loaded in shards
    (folder / f"gathered-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
