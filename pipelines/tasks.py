"""Helper tasks on Ray, with their progress: teaching a small model, scoring a model or an adapter."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from grun.config import Recipe
from grun.errors import GrunError
from grun.writing import disk_error
from pipelines.console import progress as progress_bar

__all__ = ["HelperTask", "run_tasks"]

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class HelperTask:
    """A function that runs in a Ray task."""

    title: str
    """Shown beside its progress."""
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    """Keyword arguments; the function also gets `progress`, a file to write {"done", "total"} to."""


def run_tasks(recipe: Recipe, tasks: Sequence[HelperTask], *, shared: Path, title: str | None = None) -> list[Any]:
    """Run tasks on the cluster, as many at a time as it holds, and return their results in order.

    Args:
        shared: a folder that every node sees, for the progress files.
        title: shown beside the progress; None for the titles of the tasks.

    Raises:
        GrunError: what a task found wrong.
    """
    if not tasks:
        return []
    shared.mkdir(parents=True, exist_ok=True)
    options = {"num_cpus": recipe.evaluation.num_cpus, "num_gpus": 1 if recipe.evaluation.use_gpu else 0, "max_retries": 1}
    with tempfile.TemporaryDirectory(dir=shared, prefix=".progress-") as folder:
        files = [Path(folder) / f"{index}.json" for index in range(len(tasks))]
        references = [
            ray.remote(task.function).options(**options).remote(**task.arguments, progress=file)
            for task, file in zip(tasks, files, strict=True)
        ]
        with progress_bar(title or ", ".join(task.title for task in tasks), 100) as advance:
            shown = 0
            waiting = list(references)
            while waiting:
                _done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_SECONDS)
                share = sum(_share(file) for file in files) / len(files) if waiting else 1.0
                advance(max(0, int(100 * share) - shown))
                shown = max(shown, int(100 * share))
        try:
            return list(ray.get(references))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, GrunError):
                raise error.cause from None
            if (told := disk_error(error.cause)) is not None:
                raise told from None
            raise


def _share(file: Path) -> float:
    """How far a task is, from 0 to 1."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not begun, or just being written
        return 0.0
    return float(min(1.0, values["done"] / max(1, values["total"])))
