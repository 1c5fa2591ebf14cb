"""Training that is sick: stopped before a step is applied that nobody can take back, or flagged with the reason and the remedy."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grun.config import Recipe
from grun.objectives import Objective
from grun.training import GateValues, gate_flags, gradient_flags
from pipelines.tracking import Tracker
from tests.faults.injection import Injection
from tests.faults.one_cluster import Commands, commands
from tests.faults.table import row

pytestmark = [
    pytest.mark.slow,  # workers start
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]

SICK = "tests.faults.test_sick_training"


def sick(function: Callable[..., Any], objective: Objective, inputs: Any, step: int) -> Any:
    """The loss of one worker's share, as the file says that lies beside the module's output."""
    import os

    output = function(objective, inputs, step)
    folder = Path(os.environ["SICK_TRAINING"])
    if step == 4 and os.environ.get("RANK") == "1" and (folder / "nan").exists():
        (folder / "nan").unlink()
        return type(output)(output.loss * float("nan"), output.terms)
    if (folder / "exploding").exists():
        return type(output)(output.loss * 1e6, output.terms)
    return output


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sick")


@pytest.fixture(scope="module")
def new(make_recipe: Callable[..., Recipe], output: Path) -> Callable[..., Recipe]:
    def new(name: str, **above: Any) -> Recipe:
        train = {"engine": "torch", "num_workers": 1, **above.pop("train", {})}
        return make_recipe(name=name, output=str(output), train=train, **above)

    return new


@pytest.fixture(scope="module")
def run(new: Callable[..., Recipe], output: Path) -> Iterator[Commands]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SICK_TRAINING", str(output))
        injection = Injection("grun.objectives.weighted_sum:Objective.__call__", "replace", always=True, by=f"{SICK}:sick")
        with commands(new("cluster"), output / "moments", [injection]) as found:
            yield found


def tags_of(recipe: Recipe) -> dict[str, str]:
    """Of the command's run in MLflow."""
    [found] = Tracker.open(recipe.tracking, recipe.output).search(f"attributes.run_name = '{recipe.name}'")
    return dict(found.data.tags)


def outcome_of(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((recipe.output / "runs" / recipe.name / "outcome.json").read_text())
    return values


@row(
    "sick training",
    "the loss is NaN on one of two workers",
    where="train, step 4",
    sees="`loss and gradients must stay finite, got non-finite terms ['train/loss'] in step 4; nothing was applied. Lower ...`, status 2",
    lost="nothing: the last checkpoint is from before, and the same command goes on from it",
    broken=Injection("grun.training.optimizer:AdapterOptimizer._check", "skip", always=True),
)
def test_a_loss_that_is_nan(run: Commands, new: Callable[..., Recipe], output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = new("nan", train={"num_workers": 2})
    (output / "nan").touch()
    run("train", recipe, status=2)
    err = capsys.readouterr().err
    assert (
        "error: loss and gradients must stay finite, got non-finite terms ['train/loss'] in step 4; nothing was applied. Lower"
        in err
    )
    kept = output / "runs" / "nan" / "checkpoints"
    assert [path.name for path in kept.iterdir()] == ["step00000002"]
    assert all(torch.isfinite(value).all() for value in load_file(kept / "step00000002" / "adapter.safetensors").values())
    run("train", recipe)
    assert "continuing from step 2 of 6" in capsys.readouterr().err
    assert outcome_of(recipe)["flags"].keys() <= {"gate_never_opens", "gate_always_opens"}


@row(
    "sick training",
    "gradients explode, and clipping hides it",
    where="train, every step",
    sees="`flagged exploding_gradients`: gradients must stay near what clipping lets through, got a norm above 1000 times `train.grad_clip`",
    lost="nothing: a run that ends well, flagged in summary, outcome.json and MLflow; a norm beyond a float stops it",
    broken=Injection("grun.training.health:gradient_flags", "replace", always=True, by=f"{SICK}:healthy"),
)
def test_gradients_that_explode(
    run: Commands, new: Callable[..., Recipe], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = new("exploding")
    (output / "exploding").touch()
    try:
        run("train", recipe)
    finally:
        (output / "exploding").unlink()
    out, err = capsys.readouterr()
    assert "flagged, exploding_gradients: gradients must stay near what clipping lets through, got a norm above 1000 times" in err
    assert "flagged exploding_gradients" in out
    assert "in 6 of 6 steps" in outcome_of(recipe)["flags"]["exploding_gradients"]
    assert "lower `train.learning_rate`" in tags_of(recipe)["flag.exploding_gradients"]


def healthy(_function: object, *_args: object) -> dict[str, str]:
    """Nothing is ever wrong."""
    return {}


@row(
    "sick training",
    "a gate that never opens for what is to be forgotten",
    where="train, at its end",
    sees="`flagged gate_never_opens`: ... opened for 0 of N forget prompts ...: the adapter does nothing; raise ..., or lower `adapter.gate_threshold`",
    lost="nothing: flagged, and promotion refuses it",
    broken=Injection("grun.training.health:gate_flags", "replace", always=True, by=f"{SICK}:healthy"),
)
def test_a_gate_that_never_opens(run: Commands, new: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = new("closed", request={"id": "closed"}, adapter={"gate_threshold": 0.99999})
    run("train", recipe)
    out, _err = capsys.readouterr()
    assert "flagged gate_never_opens" in out
    assert "the adapter does nothing; raise `train.epochs`" in out
    assert "opened for 0 of " in outcome_of(recipe)["flags"]["gate_never_opens"]
    assert "gate_always_opens" not in outcome_of(recipe)["flags"]
    assert "flag.gate_never_opens" in tags_of(recipe)
    run("promote", recipe, status=3)
    assert "reject: version 1" in capsys.readouterr().out


@row(
    "sick training",
    "a gate that opens for whatever comes",
    where="train, at its end",
    sees="`flagged gate_always_opens`: a gate must stay closed for ordinary prompts, got one that opened for N of N",
    lost="nothing: flagged, and promotion refuses it (gate/false_open_rate)",
    broken=Injection("grun.training.health:gate_flags", "replace", always=True, by=f"{SICK}:healthy"),
)
def test_a_gate_that_always_opens(run: Commands, new: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = new("open", request={"id": "open"}, adapter={"gate_threshold": 0.00001})
    run("train", recipe)
    out, _err = capsys.readouterr()
    assert "flagged gate_always_opens" in out
    assert "gate_never_opens" not in out
    flag = outcome_of(recipe)["flags"]["gate_always_opens"]
    assert "a gate must stay closed for ordinary prompts" in flag
    assert tags_of(recipe)["flag.gate_always_opens"] == flag
    run("promote", recipe, status=3)
    out, _err = capsys.readouterr()
    assert "reject: version 1" in out
    assert "gate/false_open_rate must be at most" in out


@pytest.mark.parametrize(
    ("norms", "flagged"),
    [
        ([1.0] * 20, False),
        ([1.0] * 19 + [1e4], False),  # one hard batch is none
        ([1.0] * 18 + [1e4, 1e4], True),
        ([0.5] * 5 + [2.0] * 10 + [900.0] * 5, True),
        ([1e-3] * 5 + [1e-2] * 10 + [0.9] * 5, False),
        ([1e-6] * 5 + [1e-2] * 10 + [0.9] * 5, False),  # grown, and never clipped
        ([900.0], False),
        ([], False),
    ],
)
def test_which_gradients_are_flagged(norms: list[float], flagged: bool) -> None:
    assert bool(gradient_flags(norms, 1.0)) is flagged


@pytest.mark.parametrize(
    ("forget", "ordinary", "threshold", "flags"),
    [
        ((0.9, 0.2), (0.1, 0.2), 0.5, set()),
        ((0.4, 0.2), (0.1, 0.2), 0.5, {"gate_never_opens"}),
        ((0.9, 0.8), (0.7, 0.2), 0.5, {"gate_always_opens"}),
        ((0.4, 0.3), (0.7, 0.6), 0.5, {"gate_never_opens", "gate_always_opens"}),
        ((0.4, 0.3), (0.1, 0.2), None, {"gate_never_opens"}),
        ((0.4, 0.3), (0.1, 0.2), 0.3, set()),
        ((), (), 0.5, set()),
    ],
)
def test_which_gates_are_flagged(
    forget: tuple[float, ...], ordinary: tuple[float, ...], threshold: float | None, flags: set[str]
) -> None:
    assert gate_flags(GateValues(forget, ordinary), threshold).keys() == flags
