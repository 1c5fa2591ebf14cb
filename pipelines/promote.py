"""Promote: load the candidate from the registry, judge it anew on test rows, and move the champion if it earned it.

    python pipelines/promote.py [--rollback] [--recipe FILE] [--field value]

Exit status: 0 promoted (or rolled back), 3 kept or rejected (the champion is unchanged), 2 a mistake in the input.
"""

import pipelines.first  # noqa: F401 - before what takes seconds to import

# isort: split

import argparse
from collections.abc import Sequence

from grun.config import Recipe
from grun.evaluation.report import EvalReport
from grun.evaluation.verdict import FORGETTING
from grun.promotion import Decision, PromotionPolicy
from pipelines.certifying import certificate_row
from pipelines.checks import check_full_precision
from pipelines.cli import next_step, parse_command
from pipelines.cluster import check_resources, connected
from pipelines.console import note, summary
from pipelines.evaluate import evaluate, report_rows
from pipelines.identity import identical_where_closed
from pipelines.lease import Lease
from pipelines.owner import process_owner
from pipelines.prepare import check, prepare
from pipelines.prepared import Prepared
from pipelines.recording import check_is_demo
from pipelines.registry import CANDIDATE, CHAMPION, Registry, Verdict
from pipelines.reporting import attach_report, complete, page_step, publish
from pipelines.running import run_command
from pipelines.scoring import report_base, threshold_key
from pipelines.tasks import HelperTask, run_tasks
from pipelines.tracking import Tracker
from pipelines.train import train

__all__ = ["main"]

_FEW_ROWS = 20

NOT_PROMOTED = 3
"""Exit status of a candidate that was kept back or rejected."""


def _options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to do")
    group.add_argument("--rollback", action="store_true", help="give the championship back to the version before")


def _rollback(recipe: Recipe, registry: Registry, again: str) -> int:
    with registry.promotion_lock(recipe.registered_model, process_owner(), recipe.promotion.lock_lease_seconds) as lease:
        before, after = registry.rollback(lease)
    summary(
        f"rolled back {recipe.registered_model}",
        {"champion before": f"version {before}", "champion now": f"version {after}"},
        [next_step("evaluate", again, "score it", "--version champion")],
    )
    return 0


def _judge(recipe: Recipe, prepared: Prepared, registry: Registry, lease: Lease, again: str) -> int:
    """Evaluate the candidate and the champion, both from the registry, decide, and act."""
    name, into = recipe.registered_model, recipe.output.absolute() / "registry" / recipe.registered_model
    test = recipe.replace({"evaluation": {"part": "test"}})
    folder = recipe.output.absolute() / "promotions" / recipe.name
    version, adapter = registry.download(name, CANDIDATE, into)
    report = evaluate(test, prepared, adapter, folder / f"v{version}", title=f"judging version {version}")
    base, run_id = report_base(test, prepared), registry.run_of(name, version)
    report = complete(report, base, test, prepared, adapter, run_id=run_id, version=version)
    page = publish(report, folder / f"v{version}" / threshold_key(report.gate_threshold))
    champion = registry.version_of(name, CHAMPION)
    incumbent: EvalReport | None = None
    if champion is not None and champion != version:
        _version, champion_folder = registry.download(name, champion, into)
        incumbent = evaluate(
            test, prepared, champion_folder, folder / f"v{champion}", title=f"judging the champion, version {champion}"
        )
    decision = PromotionPolicy(recipe.promotion).decide(report, incumbent)
    if (rows := report[FORGETTING].num_samples) < _FEW_ROWS:
        note(f"only {rows} forget prompts decide this: one of them more or less moves a rate by {1 / rows:.0%}")
    comparison = HelperTask(
        "comparing logits",
        identical_where_closed,
        {"recipe": test, "prepared": prepared.folder, "base": prepared.base, "adapter_folder": adapter},
    )
    [(identical, closed)] = run_tasks(recipe, [comparison], shared=recipe.output.absolute())
    verdict = Verdict(
        decision.decision.value,
        decision.reasons,
        {
            "report": report.model_dump(mode="json"),
            "incumbent": incumbent.model_dump(mode="json") if incumbent else None,
            "policy": recipe.promotion.model_dump(mode="json"),
            "closed_prompts_with_identical_logits": identical,
            "closed_prompts": closed,
        },
        {"report.html": page.read_text(encoding="utf-8")},
    )
    attach_report(registry, recipe, version, "promotion", page)
    promoted = decision.decision is Decision.PROMOTE
    if promoted:
        registry.promote(lease, version, verdict, expected_champion=champion)
    else:
        registry.decline(lease, version, verdict)
    summary(
        f"{decision.decision.value}: version {version} of {name}",
        {
            **decision.rows(),
            "identity": f"{identical} of {closed} held-out ordinary prompts with closed gates have bit-identical logits",
            **certificate_row(report.certificate),
            "verdict": report.verdict.sentence if report.verdict else "none",
            **report_rows(report, base),
            "report": str(page.with_name("report.json")),
            "champion": f"version {registry.version_of(name, CHAMPION)}",
        },
        [page_step(page), *_next_steps(again, promoted=promoted, replaced=champion not in (None, version))],
    )
    return 0 if promoted else NOT_PROMOTED


def _next_steps(again: str, *, promoted: bool, replaced: bool) -> list[str]:
    if not promoted:
        return [next_step("sweep", again, "look for a better adapter")]
    return [next_step("promote", again, "go back to the version before", "--rollback")] if replaced else []


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    recipe, options = parse_command(
        "Judge the registry's candidate on test rows and move the champion if it earned it.", argv, extra=_options
    )
    if options.rollback:
        return _rollback(recipe, Registry(Tracker.open(recipe.tracking, recipe.output)), options.again)
    check_full_precision(recipe)
    prepared = check(recipe)
    with connected(recipe):
        check_resources(recipe)
        tracker = Tracker.open(recipe.tracking, recipe.output)
        registry = Registry(tracker)
        prepare(recipe, prepared)
        if registry.version_of(recipe.registered_model, CANDIDATE) is None:
            check_is_demo(recipe, tracker)
            note("no candidate is registered: training the recipe's own adapter first")
            train(recipe, prepared, tracker)
        name = recipe.registered_model
        with registry.promotion_lock(name, process_owner(), recipe.promotion.lock_lease_seconds) as lease:
            version = registry.version_of(name, CANDIDATE)
            if version is not None and version == registry.version_of(name, CHAMPION):
                registry.finish_promotion(lease, version)
                summary(f"promoted already: version {version} of {name}", {"champion": f"version {version}"})
                return 0
            return _judge(recipe, prepared, registry, lease, options.again)


if __name__ == "__main__":
    run_command(main)
