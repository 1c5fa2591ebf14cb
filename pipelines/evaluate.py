"""Evaluate: score an adapter on the request's sets and record the report.

    python pipelines/evaluate.py [--adapter FOLDER | --version N|candidate|champion] [--attacks all|none|NAME,FAMILY]
                                 [--recipe FILE] [--field value]
    python pipelines/evaluate.py --model.quantization int8        the same adapter, on the base as it is deployed

Without a choice it takes the registry's candidate, else the champion, else it trains the recipe's own adapter first.
"""

import pipelines.first  # noqa: F401 - before what takes seconds to import

# isort: split

import argparse
from collections.abc import Sequence
from pathlib import Path

from grun.adapters import digest_adapter, read_card
from grun.config import Recipe
from grun.evaluation.attacks.table import ATTACKS, select_attacks
from grun.evaluation.report import EvalReport
from pipelines.adapter_scoring import score_adapter
from pipelines.attacks import attack, attack_metrics, attack_rows
from pipelines.certifying import certificate_row
from pipelines.checks import check_saved_adapter
from pipelines.cli import next_step, parse_command
from pipelines.cluster import check_resources, connected
from pipelines.console import note, summary
from pipelines.prepare import check, prepare
from pipelines.prepared import Prepared
from pipelines.recording import check_is_demo, record_request
from pipelines.registry import CANDIDATE, CHAMPION, Registry
from pipelines.reporting import attach_report, complete, page_step, publish
from pipelines.running import run_command
from pipelines.scoring import report_base, threshold_key
from pipelines.tasks import HelperTask, run_tasks
from pipelines.tracking import Tracker
from pipelines.train import train

__all__ = ["evaluate", "evaluation_folder", "find_adapter", "main", "report_rows"]


def evaluate(
    recipe: Recipe, prepared: Prepared, adapter: Path, folder: Path, *, title: str = "scoring the adapter"
) -> EvalReport:
    """Score an adapter at its own gate threshold, as one task on the cluster; rows and report go to `folder`."""
    threshold = read_card(adapter).adapter.gate_threshold
    arguments = {
        "recipe": recipe,
        "prepared": prepared.folder,
        "base": prepared.base,
        "retain_only": prepared.retain_only,
        "adapter_folder": adapter,
        "folder": folder,
        "thresholds": [threshold],
        "in_detail": True,
    }
    [reports] = run_tasks(recipe, [HelperTask(title, score_adapter, arguments)], shared=recipe.output.absolute())
    report = reports[threshold_key(threshold)]
    assert isinstance(report, EvalReport)
    return report


def find_adapter(recipe: Recipe, prepared: Prepared, tracker: Tracker, options: argparse.Namespace) -> Path:
    """The adapter that the options name, or the first there is: candidate, champion, the recipe's own."""
    if options.adapter is not None:
        return Path(options.adapter).absolute()
    registry = Registry(tracker)
    into = recipe.output.absolute() / "registry" / recipe.registered_model
    for alias in [options.version] if options.version is not None else [CANDIDATE, CHAMPION]:
        if options.version is not None or registry.version_of(recipe.registered_model, alias) is not None:
            version, folder = registry.download(recipe.registered_model, alias, into)
            note(f"scoring version {version} of {recipe.registered_model} ({alias})")
            return folder
    check_is_demo(recipe, tracker)
    note("no adapter is registered yet: training the recipe's own first")
    full_precision = recipe.model_copy(update={"model": recipe.model.full_precision})
    outcome, _version = train(full_precision, prepared, tracker)
    return outcome.adapter


def evaluation_folder(recipe: Recipe, adapter: str) -> Path:
    """Where the reports on an adapter go: on the base as it is on disk, and in it a folder for each other way to store it.

    Args:
        adapter: its version, or its digest where it is not registered.
    """
    folder = recipe.output.absolute() / "evaluations" / recipe.name / adapter
    return folder / variant.kind if (variant := recipe.model.variant) else folder


def _stored(recipe: Recipe) -> str:
    return variant.name if (variant := recipe.model.variant) else f"as on disk, in {recipe.model.dtype}"


def report_rows(report: EvalReport, base: EvalReport) -> dict[str, str]:
    """A report as lines of a summary, each number behind the base's own where the base has it."""
    return {
        metric.name: f"{_before(metric.name, base)}{metric.value:.4g}   ({metric.better}, {metric.num_samples} rows)"
        for metric in report.metrics
        if metric.value is not None
    }


def _before(name: str, base: EvalReport) -> str:
    value = base[name].value if name in base else None
    return "" if value is None else f"{value:.4g} -> "


def _version(text: str) -> str | int:
    """A number, or an alias."""
    return int(text) if text.isdecimal() else text


def _options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which adapter")
    group.add_argument("--adapter", metavar="FOLDER", help="an adapter folder")
    group.add_argument("--version", metavar="N", type=_version, help="a version number or alias of the registered model")
    parser.add_argument_group("what else is tried").add_argument(
        "--attacks",
        metavar="NAMES",
        default="none",
        help=f"all, none, or names and families with commas between them: {', '.join(ATTACKS)} [default: none]",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    recipe, options = parse_command("Score an adapter on the request's sets and record the report.", argv, extra=_options)
    attacks = select_attacks(options.attacks)
    prepared = check(recipe)
    if options.adapter is not None:
        check_saved_adapter(recipe, prepared, Path(options.adapter))
    with connected(recipe):
        check_resources(recipe)
        tracker = Tracker.open(recipe.tracking, recipe.output)
        prepare(recipe, prepared)
        adapter = find_adapter(recipe, prepared, tracker, options)
        check_saved_adapter(recipe, prepared, adapter)
        version = Registry(tracker).version_with(recipe.registered_model, adapter)
        folder = evaluation_folder(recipe, digest_adapter(adapter)[:12] if version is None else f"v{version}")
        with tracker.run(f"{recipe.name}-evaluation", tags={"kind": "evaluation", "base_variant": _stored(recipe)}) as run_id:
            record_request(tracker, run_id, prepared.request)
            report, base = evaluate(recipe, prepared, adapter, folder), report_base(recipe, prepared)
            report = attack(recipe, prepared, adapter, report, attacks)
            base.save(folder / "base.json")
            report = complete(report, base, recipe, prepared, adapter, run_id=run_id, version=version)
            page = publish(report, folder / threshold_key(report.gate_threshold))
            known = {metric.name: metric.value for metric in report.metrics if metric.value is not None}
            tracker.log_metrics(run_id, known | attack_metrics(report))
            tracker.log_json(run_id, report.model_dump(mode="json"), "report.json")
            tracker.log_json(run_id, base.model_dump(mode="json"), "base.json")
            tracker.log_text(run_id, page.read_text(encoding="utf-8"), "report.html")
            if version is not None:
                attach_report(Registry(tracker), recipe, version, "evaluation", page)
    threshold = threshold_key(report.gate_threshold)
    summary(
        f"evaluation of {adapter}",
        {
            "base": f"{prepared.base}, {_stored(recipe)}",
            "verdict": report.verdict.sentence if report.verdict else "none",
            **report_rows(report, base),
            **certificate_row(report.certificate),
            **attack_rows(report),
            "report": str(folder / threshold / "report.json"),
            "rows": str(folder / threshold / "rows.jsonl"),
            "the base's own": str(folder / "base.json"),
        },
        [
            page_step(page),
            # what is promoted is what is served, in full precision
            *([] if recipe.model.variant else [next_step("promote", options.again, "judge the candidate and move the champion")]),
        ],
    )
    return 0


if __name__ == "__main__":
    run_command(main)
