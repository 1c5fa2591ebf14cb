"""Two requests in sequence by the real commands, killed on the way: real Ray and MLflow, processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from grun.config import Recipe, read_recipe_file
from grun.errors import TrainingError
from grun.evaluation.stack_report import StackReport
from grun.ledger import Ledger
from pipelines import request
from pipelines.ledger_store import LedgerStore
from pipelines.registry import CHAMPION, Registry

pytestmark = pytest.mark.slow  # clusters start, and a small base is taught

ROOT = Path(__file__).parents[2]

RECIPE = """
name: sequence
data: {kind: testbed, num_people: 12, num_forget: 2}
model: {taught: {hidden_size: 64, num_layers: 4, vocab_size: 1024, epochs: 40, learning_rate: 0.005}}
adapter: {relative_depths: [0.5, 0.75]}
train: {epochs: 600, num_workers: 1, engine: torch, report_every: 20}
evaluation: {max_new_tokens: 12}
# twelve people and a tiny base: the path is what is tested here
calibration: {alpha: 0.2}
promotion: {max_forget_rouge: 0.4, min_utility_ratio: 0.8, max_false_open_rate: 0.3}
cluster: {num_cpus: 2}
"""


class Commands:
    """The ledger of a folder, and its commands as processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "recipe.yaml"
        self.path.write_text(RECIPE, encoding="utf-8")
        self.options = ["--recipe", str(self.path), "--output", str(folder / "outputs")]
        self.recipe = Recipe.parse({**read_recipe_file(self.path), "output": str(folder / "outputs")})

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = [sys.executable, "pipelines/request.py", *arguments, *self.options]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> tuple[str, str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=1200)
        assert process.returncode == 0, err
        return out, err

    def killed_when_it_says(self, beginning: str, *arguments: str) -> str:
        """Run a command until it says something, and kill it with SIGKILL."""
        with self.start(*arguments) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith(beginning):
                    process.kill()
                    break
            said += process.stderr.readlines()
        assert process.returncode == -signal.SIGKILL, "".join(said)
        return "".join(said)

    def ledger(self) -> Ledger:
        return LedgerStore.open(self.recipe).read()

    def report(self, version: int) -> StackReport:
        return StackReport.load(self.recipe.output / "ledgers" / "demo" / "judged" / f"v{version}" / "report.json")


def test_two_requests_killed_twice_revoked_and_reinstated(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    for _ in range(2):
        assert request.main(["add", *commands.options]) == 0

    commands.killed_when_it_says("training: ", "next")
    assert [entry.action for entry in commands.ledger().entries] == ["add", "add", "train"]
    said = commands.killed_when_it_says("judging version ", "next")
    assert "continuing from step " in said, "from the checkpoint of the process that was killed"
    assert [entry.action for entry in commands.ledger().entries][3:] == ["trained", "stacked"]
    commands.run("next")
    assert [entry.action for entry in commands.ledger().entries][3:] == ["trained", "stacked", "promoted"]
    tracker = LedgerStore.open(commands.recipe).tracker
    assert [run.info.status for run in tracker.search("tags.kind = 'train'")] == ["FINISHED"]

    out, err = commands.run("next")
    assert "building the prefix cache" in err, "its own rows alone: the common ones are there"
    assert commands.ledger().active == ("demo-1", "demo-2")
    report = commands.report(2)
    for member in report.members:
        assert member.rouge_before is not None
        assert member.rouge_after is not None
        assert member.rouge_after <= 0.4 < member.rouge_before
    assert "next: python pipelines/request.py list" in out

    commands.run("revoke", "demo-1", "--reason", "withdrawn")
    assert commands.ledger().active == ("demo-2",)
    alone, together = commands.report(3).members[0], report.members[1]
    assert alone.adapter_digest == together.adapter_digest
    assert alone.rouge_after == together.rouge_after, "its own gates decide for it, whoever else is there"
    commands.run("reinstate", "demo-1", "--reason", "asked again")
    registry = Registry(tracker)
    assert registry.version_of(commands.recipe.ledger_model, CHAMPION) == 4
    assert commands.ledger().active == ("demo-2", "demo-1")
    out, _err = commands.run("verify")
    assert "stacks" in out


@pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning")  # Ray reads its own old fields
def test_a_training_that_goes_wrong_is_recorded_and_can_be_given_again(
    recipe_file: Callable[..., str], data_folder: Path, tmp_path: Path
) -> None:
    file = recipe_file(train={"num_workers": 1, "engine": "torch"})
    asked = ["--request.id", "r1", "--request.reason", "asked", "--forget", str(data_folder / "forget.jsonl")]
    assert request.main(["add", *asked, "--recipe", file]) == 0
    with pytest.raises(TrainingError, match="loss and gradients must stay finite"):
        request.main(["train", "r1", "--recipe", file, "--train.learning_rate", "1e30"])
    recipe = Recipe.parse(read_recipe_file(Path(file)))
    store = LedgerStore.open(recipe)
    entry = store.read().entries[-1]
    assert entry.action == "failed"
    assert entry.reason.startswith("loss and gradients must stay finite")
    assert request.main(["next", "--recipe", file]) == 0, "nothing to do: nobody goes on with it unasked"
    assert request.main(["train", "--recipe", file, "r1"]) == 0
    state = store.read().state("r1")
    assert state.status == "trained"
    assert state.adapter is not None
    assert [entry.action for entry in store.read().entries] == ["add", "train", "failed", "train", "trained"]
    assert request.main(["verify", "--recipe", file]) == 0
