"""Ctrl-C at every stage: the first finishes tidily and says how to continue, the second stops now; the same command then completes."""

import ctypes
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.ending import CONTINUES
from tests.faults.commands import finished, running
from tests.faults.holding_still import at, reached, say_here
from tests.faults.injection import Injection
from tests.faults.table import row
from tests.faults.test_drivers import RECIPE
from tests.pipelines.processes import Ended

pytestmark = pytest.mark.slow  # clusters start

STAGES = {
    "checking": ("train", "pipelines.prepare:check"),
    "starting Ray": ("train", "ray._private.node:Node.start_ray_processes"),
    "teaching": ("train", "grun.lm.teach:teach_model"),
    "caching": ("train", "pipelines.cache_tasks:build_shard"),
    "training": ("train", "pipelines.worker:append_entry"),
    "certifying": ("train", "pipelines.certifying:certify_adapter"),
    "registering": ("train", "pipelines.registry:Registry.register_candidate"),
    "evaluating": ("evaluate", "pipelines.adapter_scoring:score_adapter"),
    "promoting": ("promote", "grun.promotion:PromotionPolicy.decide"),
    "sweeping": ("sweep", "pipelines.worker:append_entry"),
    "scoring": ("sweep", "pipelines.sweep_trial:_score"),
}
"""In the order in which commands come there, each going on from where the one before was stopped."""


@dataclass
class Story:
    """One output folder, and how its commands ended."""

    output: Path
    ended: dict[str, Ended] = field(default_factory=dict)
    orphans: dict[str, list[str]] = field(default_factory=dict)
    last: dict[str, Ended] = field(default_factory=dict)
    """Of each verb, the command that nobody interrupted."""


def options(output: Path, **above: Any) -> list[str]:
    file = output.with_suffix(".yaml")
    values = {
        **RECIPE,
        "output": str(output),
        "calibration": {"alpha": 0.1},
        "sweep": {**RECIPE["sweep"], "num_trials": 2},
        **above,
    }
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return ["--recipe", str(file)]


def interrupt(story: Story, stage: str, verb: str, where: str) -> None:
    """Give the command, and SIGINT to it and all its processes, as a terminal does, once it is there."""
    place, variables = at(where, story.output.parent, name=stage.replace(" ", "-"))
    with running(verb, *options(story.output), injections=[place], **variables) as started:
        reached(started, variables)
        started.interrupt()
        story.ended[stage] = started.ended()
        story.orphans[stage] = started.survivors()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Every stage interrupted, one after the other; each verb runs to its end before the next one begins."""
    story = Story(tmp_path_factory.mktemp("story") / "outputs")
    stages = list(STAGES.items())
    for number, (stage, (verb, where)) in enumerate(stages):
        interrupt(story, stage, verb, where)
        if number + 1 == len(stages) or stages[number + 1][1][0] != verb:
            story.last[verb] = finished(verb, *options(story.output))
    return story


def _row(stage: str, verb: str) -> Callable[[Any], Any]:
    return row(
        "interruptions",
        f"Ctrl-C while {stage}",
        where=f"`{verb}`",
        sees="how to continue, status 130; the same command completes",
        broken=Injection("pipelines.running:_interrupted", "skip", always=True),
        case=stage,
    )


def all_rows(test: Any) -> Any:
    """A row for each stage."""
    for stage, (verb, _where) in STAGES.items():
        _row(stage, verb)(test)
    return test


@all_rows
@pytest.mark.parametrize("stage", list(STAGES))
def test_the_first_finishes_tidily(story: Story, stage: str) -> None:
    ended = story.ended[stage]
    assert ended.status == 130, ended.err
    assert ended.err.endswith(f"{CONTINUES}\n")
    assert "Traceback" not in ended.err
    assert story.orphans[stage] == []
    last = story.last[STAGES[stage][0]]
    assert last.status in (0, 3), last.err
    assert "Traceback" not in last.err


@row(
    "interruptions",
    "Ctrl-C while importing",
    where="`sweep`",
    sees="how to continue, status 130; nothing was begun",
    broken=Injection("pipelines.first:os._exit", "skip", always=True),
)
def test_nothing_has_begun_yet(tmp_path: Path) -> None:
    place, variables = at("tune_spaces.space:choice", tmp_path)
    with running("sweep", *options(tmp_path / "outputs"), injections=[place], **variables) as started:
        reached(started, variables)
        started.interrupt()
        ended = started.ended()
    assert ended.status == 130
    assert ended.err == f"{CONTINUES}\n"
    assert not (tmp_path / "outputs").exists()


@row(
    "interruptions",
    "SIGTERM to all processes at once, Ray's head among them, as service managers and `timeout` send it",
    where="`train`, in the middle of training",
    sees="how to continue, some seconds later, status 130",
    broken=Injection("pipelines.head_watch:stop_now", "skip", always=True),
)
def test_everything_is_told_to_end(story: Story, tmp_path: Path) -> None:
    output = tmp_path / "outputs"
    shutil.copytree(story.output / "models", output / "models")
    place, variables = at("pipelines.worker:append_entry", tmp_path)
    with running("train", *options(output), injections=[place], **variables) as started:
        reached(started, variables)
        started.interrupt(signal.SIGTERM)
        ended = started.ended()
        assert ended.status == 130, ended.err
        assert ended.err.endswith(f"{CONTINUES}\n")
        assert started.survivors() == []


def stuck(*_arguments: Any, **_named: Any) -> None:
    """What takes the place of a function: the thread never comes back from the system, whatever signals arrive."""
    hold_in_c = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(128)
    say_here()
    hold_in_c.pthread_mutex_lock(mutex)
    hold_in_c.pthread_mutex_lock(mutex)


@row(
    "interruptions",
    "Ctrl-C twice, while nothing answers",
    where="`train`, with its cluster up",
    sees="`stopped at once`, status 130",
    broken=Injection("pipelines.ending:_watch", "skip", always=True),
)
def test_the_second_stops_now_whatever_is_going_on(story: Story, tmp_path: Path) -> None:
    output = tmp_path / "outputs"
    shutil.copytree(story.output / "models", output / "models")
    by = "tests.faults.test_interrupts:stuck"
    place, variables = at("pipelines.tracking:Tracker.open", tmp_path, by=by)
    with running("train", *options(output), injections=[place], **variables) as started:
        reached(started, variables)
        assert started.processes("raylet")
        ended = started.interrupted_until_it_ends()
        assert ended.status == 130
        assert ended.err.endswith("stopped at once; the same command continues where this one stopped\n")
        assert "Traceback" not in ended.err
        assert started.survivors() == []
