"""Training commands on a real local Ray that tests share, and what such a command leaves behind."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from mlflow.entities import Run as MlflowRun
from safetensors.torch import load_file

from grun.config import Recipe
from grun.writing import unseal
from pipelines import train
from pipelines.cluster import connected
from pipelines.entry import OUTCOME_FILE
from pipelines.notices import telling
from pipelines.running import run_command
from pipelines.tracking import Tracker

__all__ = ["Run", "TrainIt", "on_a_cluster", "training_on_one_cluster"]


@dataclass(frozen=True)
class Run:
    """A training command that has ended."""

    recipe: Recipe
    said: str = ""
    """On standard error."""

    @property
    def folder(self) -> Path:
        return train.run_folder(self.recipe)

    @property
    def outcome(self) -> dict[str, Any]:
        return unseal((self.folder / OUTCOME_FILE).read_text(encoding="utf-8"))

    @property
    def spool(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    @property
    def steps(self) -> list[int]:
        """The steps that were taken, in the order of their lines."""
        return [line["step"] for line in self.spool]

    @property
    def tracker(self) -> Tracker:
        return Tracker.open(self.recipe.tracking, self.recipe.output)

    @property
    def recorded(self) -> MlflowRun:
        """The one MLflow run of this command."""
        [run] = self.tracker.search(f"attributes.run_name = '{self.recipe.name}'")
        return run

    def has_adapter_of(self, other: "Run", *, atol: float = 1e-6) -> None:
        mine, theirs = (load_file(run.folder / "adapter" / "adapter.safetensors") for run in (self, other))
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=atol)

    def counts_every_step_once(self, other: "Run", *, rel: float = 0.0) -> None:
        """The same numbers of every step as the other's, here and in MLflow, none missing and none twice."""
        mine, theirs = (
            {line["step"]: {k: v for k, v in line["metrics"].items() if k.count("/") == 1} for line in run.spool}
            for run in (self, other)
        )
        assert sorted(mine) == sorted(theirs)
        for step, values in theirs.items():
            assert mine[step] == pytest.approx(values, rel=rel, abs=rel), step
        assert self.recorded.info.status == "FINISHED"
        for key in theirs[1]:
            points = self.tracker.client.get_metric_history(self.recorded.info.run_id, key)
            assert sorted(point.step for point in points) == sorted(theirs), key
            for point in points:
                assert point.value == pytest.approx(theirs[point.step][key], rel=rel, abs=rel)


TrainIt = Callable[..., Run]


@contextmanager
def on_a_cluster(recipe: Recipe, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """A local cluster for several tests; its processes have some more environment variables."""
    handler = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ):
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.update(variables or {})
        with connected(recipe):
            yield
    signal.signal(signal.SIGTERM, handler)


@contextmanager
def training_on_one_cluster(
    make_recipe: Callable[..., Recipe], output: Path, variables: Mapping[str, str] | None = None, **cluster: Any
) -> Iterator[TrainIt]:
    """Train recipes by the command, on one cluster of two CPUs and into one output folder."""

    def train_it(name: str, *, status: int = 0, **above: Any) -> Run:
        recipe = make_recipe(name=name, output=str(output), **{"cluster": cluster, **above})
        file = output / f"{name}.yaml"
        file.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")  # JSON is YAML
        with redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
            run_command(lambda: train.main(["--recipe", str(file)]))
        sys.stderr.write(said.getvalue())
        assert ended.value.code == status
        return Run(recipe, said.getvalue())

    # the cluster outlives the commands
    with (
        on_a_cluster(make_recipe(cluster=cluster), variables),
        mock.patch.object(train, "connected", side_effect=lambda _recipe: telling()),
    ):
        yield train_it
