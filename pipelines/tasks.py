"""Helper tasks on Ray, with their progress: teaching a small model, scoring a model or an adapter, building a cache.

A task whose process dies, or hangs (:mod:`pipelines.pulse`), runs again; what a task finds wrong is raised at once.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from grun.config import Recipe
from grun.errors import ClusterError, GrunError
from grun.writing import disk_error
from pipelines.console import progress as progress_bar
from pipelines.pulse import PulseWatch, beating
from pipelines.shortage import is_shortage, shortage_message
from pipelines.task_progress import read_share

__all__ = ["HelperTask", "run_tasks"]

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class HelperTask:
    """A function that runs in a Ray task."""

    title: str
    """Shown beside its progress."""
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    """Keyword arguments; the function also gets `progress`, a file for :func:`pipelines.task_progress.tell_progress`."""
    remedy: str = "lower `evaluation.batch_size`, or raise `evaluation.num_cpus`, so that fewer tasks run at a time"
    """What to do where it does not find the memory that it takes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Ray's options for it, over those that :func:`run_tasks` gives."""


def run_tasks(recipe: Recipe, tasks: Sequence[HelperTask], *, shared: Path, title: str | None = None) -> list[Any]:
    """Run tasks on the cluster, as many at a time as it holds, and return their results in order.

    Args:
        shared: a folder that every node sees, for the progress files.
        title: shown beside the progress; None for the titles of the tasks.

    Raises:
        GrunError: what a task found wrong.
        ClusterError: a task ran out of memory, or its process died more often than `train.max_failures`.
    """
    if not tasks:
        return []
    shared.mkdir(parents=True, exist_ok=True)
    title = title or ", ".join(task.title for task in tasks)
    with tempfile.TemporaryDirectory(dir=shared, prefix=".progress-", ignore_cleanup_errors=True) as folder:
        files = [Path(folder) / f"{index}.json" for index in range(len(tasks))]
        references = [_start(recipe, task, file) for task, file in zip(tasks, files, strict=True)]
        watch = PulseWatch(map(_pulse_of, files), recipe.cluster.hang_seconds, title)
        with progress_bar(title, 100) as advance:
            shown = 0
            waiting = list(references)
            while waiting:
                _done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_SECONDS)
                watch()
                share = sum(read_share(file) for file in files) / len(files) if waiting else 1.0
                advance(max(0, int(100 * share) - shown))
                shown = max(shown, int(100 * share))
        return [_result(recipe, task, reference) for task, reference in zip(tasks, references, strict=True)]


def _start(recipe: Recipe, task: HelperTask, file: Path) -> Any:
    options = {
        "name": task.function.__name__,
        "num_cpus": recipe.evaluation.num_cpus,
        "num_gpus": 1 if recipe.evaluation.use_gpu else 0,
        "max_retries": recipe.train.max_failures,
        **task.options,
    }
    return ray.remote(_run).options(**options).remote(task.function, _pulse_of(file), {**task.arguments, "progress": file})


def _run(function: Callable[..., Any], pulse: Path, arguments: Mapping[str, Any]) -> Any:
    with beating(pulse):
        return function(**arguments)


def _pulse_of(file: Path) -> Path:
    return file.with_suffix(".pulse")


def _result(recipe: Recipe, task: HelperTask, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GrunError):
            raise error.cause from None
        if is_shortage(error.cause):
            raise ClusterError(shortage_message(f"a task ({task.title})", error.cause, task.remedy)) from None
        if (told := disk_error(error.cause)) is not None:
            raise told from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        who = "Ray" if isinstance(error, ray.exceptions.OutOfMemoryError) else "somebody, as the kernel does"
        raise ClusterError(
            f"a task ({task.title}) must survive with at most {recipe.train.max_failures} restart(s), got one more process killed, by {who} "
            f"when memory runs out: {task.remedy}; the same command continues"
        ) from None
