"""The page of a report where people look for it: beside the report, and in MLflow on every run that it concerns. Real Ray and MLflow."""

from collections.abc import Callable
from pathlib import Path

import pytest

from grun.evaluation.report import EvalReport
from pipelines import evaluate, promote, train
from pipelines.cli import parse_command
from pipelines.registry import CANDIDATE, Registry
from pipelines.tracking import Tracker

pytestmark = [
    pytest.mark.slow,  # trains an adapter on worker processes
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
]


def test_evaluate_and_promote_leave_their_page_with_all_runs(
    recipe_file: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--recipe", recipe_file()]
    recipe, _options = parse_command("", options)
    assert train.main(options) == 0
    assert evaluate.main([*options, "--version", CANDIDATE]) == 0
    assert f"next: open {recipe.output.absolute()}/evaluations/demo/" in capsys.readouterr().out
    # the tiny base says nothing right, so that nothing can be kept of it: no promotion
    assert promote.main(options) == promote.NOT_PROMOTED
    tracker = Tracker.open(recipe.tracking, recipe.output)
    registry = Registry(tracker)
    source = registry.run_of(recipe.registered_model, 1)
    assert source is not None

    def stored(run_id: str, name: str) -> str:
        target = tmp_path / run_id
        target.mkdir(exist_ok=True)
        return Path(tracker.client.download_artifacts(run_id, name, str(target))).read_text(encoding="utf-8")

    [evaluation] = tracker.search("tags.kind = 'evaluation'")
    [promotion] = registry.history(recipe.registered_model)
    for occasion, run_id in (("evaluation", evaluation.info.run_id), ("promotion", promotion.run_id)):
        [page] = recipe.output.glob(f"{occasion}s/demo/**/report.html")
        assert stored(run_id, "report.html") == stored(source, f"{occasion}/v1/report.html") == page.read_text(encoding="utf-8")
        report = EvalReport.load(page.with_name("report.json"))
        assert report.verdict is not None
        # too few steps for gates that part anything: one opens for every ordinary prompt
        assert report.verdict.status == "damaged"
        assert report.verdict.sentence in page.read_text(encoding="utf-8")
        assert report.cost is not None
        assert report.cost.wall_seconds is not None
        assert report.provenance is not None
        assert (report.provenance.registered_version, report.provenance.objective) == (1, "forget gd, retain ce")
        assert str(tmp_path) not in page.read_text(encoding="utf-8")
    tags = tracker.client.get_model_version(recipe.registered_model, "1").tags
    assert tags["report"] == f"runs:/{source}/promotion/v1/report.html"
