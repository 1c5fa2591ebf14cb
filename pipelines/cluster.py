"""Ray: use the cluster we were given, or start a local one; and what every process of ours wants in its environment."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.autoscaler.sdk import request_resources

from grun.config import Recipe
from grun.errors import ClusterError
from pipelines import ending
from pipelines.head_watch import watching_head
from pipelines.notices import telling
from pipelines.transfers import telling_of_transfers

__all__ = ["asking_for_room", "check_resources", "connected", "worker_environment"]

_ENVIRONMENT = {
    # one thread per worker: Ray counts CPUs, and two pools of threads on one core only wait for each other
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # glibc would keep freed gathered parameters; above this size (32 MiB) they go back to the system. At 1 MiB activations
    # do so too, and asking for their pages again takes a third of a training step
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "RAY_USAGE_STATS_ENABLED": "0",
    # a report to the controller waits for one poll; the default is two seconds
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # workers that are killed leave their group at once; one that hangs cannot, and is waited for so long
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # the new output prints tables of its own whatever `verbose` says
    "RAY_AIR_NEW_OUTPUT": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def worker_environment(*, use_gpu: bool) -> dict[str, str]:
    """Environment variables of every worker process; what the operator has set stays."""
    wanted = _ENVIRONMENT if use_gpu else {**_ENVIRONMENT, "DS_ACCELERATOR": "cpu"}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def hang_environment(recipe: Recipe) -> dict[str, str]:
    """How long Ray Train waits for the answer of a worker before it takes it for dead; read by the controller of each run."""
    return {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{recipe.cluster.hang_seconds:g}"}


@contextmanager
def connected(recipe: Recipe) -> Iterator[None]:
    """Connect to the cluster of `RAY_ADDRESS`, or start a local one for the time of the context.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    environment = {**worker_environment(use_gpu=recipe.train.use_gpu), **hang_environment(recipe)}
    os.environ.update(environment)
    given = os.environ.get("RAY_ADDRESS")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if given:
            ray.init(address=given, log_to_driver=False, runtime_env={"env_vars": environment}, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=recipe.cluster.num_cpus or os.cpu_count(),
                object_store_memory=recipe.cluster.object_store_mb * 10**6,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": environment},
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the cluster at RAY_ADDRESS={given!r}" if given else "a local Ray cluster"
        raise ClusterError(
            f"{where} must be reachable, got {type(error).__name__}: {error}; start it, or unset RAY_ADDRESS"
        ) from error
    # Ray installs a handler of its own, which ends the process where ours lets the work end tidily
    signal.signal(signal.SIGTERM, handler)
    try:
        with watching_head(given), telling(), telling_of_transfers(recipe):
            yield
    finally:
        if ending.is_interrupted():  # what ends now is not worth a word of Ray's
            logging.getLogger("ray").setLevel(logging.CRITICAL)
        ray.shutdown()


def check_resources(recipe: Recipe) -> None:
    """Refuse a run whose workers the cluster can never hold; Ray would wait for them without end.

    Raises:
        ClusterError: with what is needed and what there is.
    """
    have = ray.cluster_resources()
    train = recipe.train
    needs = {"CPU": train.num_workers * train.cpus_per_worker, "GPU": train.num_workers if train.use_gpu else 0}
    needs["CPU"] = max(needs["CPU"], recipe.evaluation.num_cpus)
    needs["GPU"] = max(needs["GPU"], 1 if recipe.evaluation.use_gpu else 0)
    for kind, needed in needs.items():
        if needed > have.get(kind, 0):
            raise ClusterError(
                f"the cluster must hold all workers at once, got {train.num_workers} worker(s) that need {needed} {kind}(s) "
                f"and {have.get(kind, 0):g} in the cluster; lower `train.num_workers`, or add nodes"
            )


@contextmanager
def asking_for_room(recipe: Recipe) -> Iterator[None]:
    """Ask the cluster's autoscaler for room for `sweep.max_concurrent` groups of workers; nothing happens where there is none."""
    train, groups = recipe.train, recipe.sweep.max_concurrent
    if groups is None:
        yield
        return
    worker = {"CPU": train.cpus_per_worker, **({"GPU": 1} if train.use_gpu else {})}
    request_resources(bundles=[worker] * (groups * train.num_workers))
    try:
        yield
    finally:
        request_resources(bundles=[])
