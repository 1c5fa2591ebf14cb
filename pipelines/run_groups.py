"""Free what a run had reserved whose controller was killed, so that the run that takes its place does not wait for it for ever.

Ray frees a placement group once its creator and the job have both ended: one whose creator died alone stays for the length of the
command. Ray Train's own cleaner would ask the cluster's dashboard, which local clusters do not have. So rank 0 writes down which group
its run has, and whoever runs the same thing again removes that first.
"""

from contextlib import suppress
from pathlib import Path

import ray.train
from ray import PlacementGroupID
from ray.util import get_current_placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

__all__ = ["free_group", "keep_group"]

_FILE = "placement_group"


def keep_group(storage: Path) -> None:
    """Write down the group of this run; called by each of its workers.

    Args:
        storage: of the run, on storage that every node sees.
    """
    group = get_current_placement_group()
    if group is not None and ray.train.get_context().get_world_rank() == 0:
        with suppress(OSError):  # on a full disk there is nothing to go on with either
            (storage / _FILE).write_text(group.id.hex(), encoding="utf-8")


def free_group(storage: Path) -> None:
    """Remove what an earlier run there has left; called before the next one starts, when no process of the earlier one is wanted any more."""
    try:
        number = (storage / _FILE).read_text(encoding="utf-8")
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(number)))
    except (FileNotFoundError, ValueError):  # there was none, or it was killed before it had written it all
        return
