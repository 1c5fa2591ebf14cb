"""Ray's memory monitor: a worker that takes what its node does not have is killed, which is said."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch

from grun.config import Recipe
from tests.faults.arming import Arms
from tests.faults.injection import Injection, environment
from tests.faults.table import row
from tests.faults.test_workers import ALONE, FORWARD
from tests.pipelines.runs import TrainIt, training_on_one_cluster

pytestmark = [
    pytest.mark.slow,  # workers start
    pytest.mark.alone,  # the memory that others take counts too
    # Ray reads all fields of its data context, old ones too, to hand them to the workers
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]

GIGABYTE = 2**30
ROOM, TAKEN = 5 * GIGABYTE, 7 * GIGABYTE
"""What the monitor lets processes take beyond what is in use now, and what the worker takes."""

_held: list[torch.Tensor] = []


def greedy(_original: Callable[..., Any], *_args: Any, **_options: Any) -> None:
    """A fault: more memory is taken than there is, and held."""
    _held.extend(torch.ones(GIGABYTE, dtype=torch.uint8) for _ in range(TAKEN // GIGABYTE))
    threading.Event().wait()


@pytest.fixture
def arms(tmp_path_factory: pytest.TempPathFactory) -> Arms:
    return Arms(tmp_path_factory.mktemp("monitor") / "arms")


@pytest.fixture
def train_it(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., Recipe], arms: Arms) -> Iterator[TrainIt]:
    memory = psutil.virtual_memory()
    if memory.available < TAKEN + GIGABYTE:
        pytest.skip(f"{memory.available / 1e9:.1f} GB are free: the memory monitor was not tried")
    threshold = (memory.total - memory.available + ROOM) / memory.total
    fault = arms.fault("greedy", FORWARD, "replace", nth=4, by="tests.faults.test_memory_monitor:greedy")
    variables = {**environment([fault]), "RAY_memory_usage_threshold": f"{threshold:.4f}"}
    with training_on_one_cluster(make_recipe, tmp_path_factory.mktemp("monitor"), variables) as train_it:
        yield train_it


@row(
    "memory",
    "more is taken than Ray's memory monitor allows (95 % of a node, if nothing else is set)",
    where="`train`, the only worker, in step 4, more often than `train.max_failures`",
    sees="that a process was killed by Ray as memory ran out, what to lower, and that the same command continues; exit status 2",
    broken=Injection("pipelines.deaths:is_by_memory", "skip", always=True),
)
def test_a_process_that_the_memory_monitor_kills(train_it: TrainIt, arms: Arms) -> None:
    straight = train_it("straight", train=ALONE)
    with arms.armed("greedy"):
        run = train_it("greedy", status=2, train={**ALONE, "max_failures": 0})
    message = run.said.splitlines()[-1]  # whoever Ray chose: the worker, or the run's controller with it
    assert "was killed by Ray, as the memory of its node ran out" in message, run.said
    assert "lower `train.batch_size`" in message
    assert "the same command " in message
    assert run.steps == [1, 2, 3]
    again = train_it("greedy", train={**ALONE, "max_failures": 0})
    # what Ray killed may be the actor that frees a run's placement group: then the end of the command does
    again.has_adapter_of(straight, atol=0)
