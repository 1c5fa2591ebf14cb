"""Commands on one cluster in this process: cheaper than a process each, where it is not the driver that dies."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import pytest

from grun.config import Recipe
from pipelines import promote, sweep, train
from pipelines.running import run_command
from tests.faults.injection import Injection, environment
from tests.faults.moments import VARIABLE, Moments
from tests.pipelines.runs import on_a_cluster

__all__ = ["Commands", "commands"]

_VERBS = {"train": train, "sweep": sweep, "promote": promote}


class Commands:
    """Runs verbs by their command lines."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    def __call__(self, verb: str, recipe: Recipe, *options: str, status: int = 0) -> None:
        """Run one; it has to end with this status."""
        recipe.output.mkdir(parents=True, exist_ok=True)
        file = recipe.output / f"{recipe.name}.yaml"
        if not file.exists():
            file.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")  # JSON is YAML
        main: Callable[[Sequence[str]], int] = _VERBS[verb].main
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: main(["--recipe", str(file), *options]))
        assert ended.value.code == status


@contextmanager
def commands(recipe: Recipe, folder: Path, injections: Sequence[Injection]) -> Iterator[Commands]:
    """A cluster of two CPUs whose processes have these injections, and commands on it."""
    folder.mkdir(parents=True, exist_ok=True)
    with on_a_cluster(recipe, environment(injections, {VARIABLE: str(folder)})), ExitStack() as patches:
        for module in _VERBS.values():
            patches.enter_context(mock.patch.object(module, "connected", return_value=nullcontext()))
        yield Commands(Moments(folder))
