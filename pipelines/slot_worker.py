"""What runs on each worker of a warm slot: ask the hub for a trial, train it from a pristine state, ask again.

Rank 0 speaks to the hub and tells the others. An error that the user can mend ends the trial; any other ends the process,
as nobody knows what it has left behind, and Ray starts fresh workers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist

from grun.config import Recipe
from pipelines.entry import ERROR_FILE, OUTCOME_FILE
from pipelines.worker import Bench, as_mendable, recording_errors

__all__ = ["serve"]


def serve(config: Mapping[str, Any]) -> None:
    """Train what the hub gives out, until it closes.

    Args:
        config: what :func:`pipelines.trainer.worker_config` gives, `hub` and `slot`.
    """
    hub: Any = ray.get_actor(config["hub"])
    slot = config["slot"]
    leads = dist.get_rank() == 0
    if leads:
        ray.get(hub.started.remote(slot))
    try:
        bench = Bench.open(config)
    except Exception as error:
        mendable = as_mendable(error)
        if mendable is None:
            raise
        # of several workers, it may be any that cannot
        ray.get(hub.refuse.remote(str(mendable)))
        return
    while (trial := _told(ray.get(hub.next.remote(slot)) if leads else None)) is not None:
        if not trial:
            continue
        folder, trial_id = Path(trial["folder"]), trial["trial_id"]

        def report(metrics: dict[str, Any], trial_id: str = trial_id) -> None:
            if leads:
                ray.get(hub.report.remote(trial_id, metrics))

        # a worker may have found something wrong, and the slot was started again
        if not any((folder / name).is_file() for name in (OUTCOME_FILE, ERROR_FILE)):
            with recording_errors(folder):
                bench.train(Recipe.parse(trial["recipe"]), folder, report)
        dist.barrier()
        if leads:
            ray.get(hub.done.remote(slot, trial_id))


def _told(value: Any) -> Any:
    """Rank 0's value, on every worker."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
