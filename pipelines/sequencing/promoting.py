"""Judge a registered stack, move the champion or say why not, and write down what was done.

A worker may vanish between any two steps. Judging twice changes nothing; the champion is moved once, and whoever finds that it was
writes the ledger's entry that is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grun.data.sequence import without
from grun.errors import DataError
from grun.evaluation.stack_report import StackReport
from grun.ledger import Action, Details
from grun.promotion import Decision, PromotionDecision
from grun.promotion_stack import StackPolicy
from pipelines.lease import Lease
from pipelines.owner import process_owner
from pipelines.registry import CHAMPION, Verdict
from pipelines.scoring import reference_path
from pipelines.sequencing.course import course_figure
from pipelines.sequencing.data import asked_for
from pipelines.sequencing.judging import StackSets, judge_stack
from pipelines.sequencing.stacking import Stacked, stack_version
from pipelines.sequencing.work import Work
from pipelines.tasks import HelperTask, run_tasks

__all__ = ["Served", "retire", "serve_stack"]


@dataclass(frozen=True)
class Served:
    """What became of a stack."""

    stacked: Stacked
    report: StackReport
    decision: PromotionDecision

    @property
    def promoted(self) -> bool:
        """Whether it is the champion."""
        return self.decision.decision is Decision.PROMOTE


def serve_stack(work: Work, request_id: str, members: Sequence[str], *, done: Action, reason: str = "") -> Served:
    """Bring the champion to the stack of some requests, if it earns it. Needs a connected cluster.

    Args:
        request_id: for whose sake.
        members: the requests, in order.
        done: what the ledger says once the stack is served.
        reason: why, for the record.

    Raises:
        GrunError: what went wrong; the champion is as it was.
    """
    stacked = stack_version(work, request_id, members)
    with work.registry.promotion_lock(work.model, process_owner(), work.recipe.promotion.lock_lease_seconds) as lease:
        served = _decide(work, lease, stacked)
    details = Details(
        members=stacked.members,
        stack=stacked.digest,
        model=work.model,
        version=stacked.version,
        run_id=stacked.run_id,
        evaluation=served.report.metrics(),
    )
    reasons = [*([reason] if reason else []), *(() if served.promoted else served.decision.reasons)]
    work.record(done if served.promoted else "declined", request_id, reason="\n".join(reasons), details=details)
    work.tracker.log_figure(stacked.run_id, course_figure(work.ledger, work.recipe.promotion), "figures/sequence.png")
    return served


def _decide(work: Work, lease: Lease, stacked: Stacked) -> Served:
    """Judge a stack and act, or find that somebody did."""
    registry = work.registry
    champion = registry.version_of(work.model, CHAMPION)
    if champion == stacked.version:
        return Served(stacked, _known_report(work, stacked), PromotionDecision(Decision.PROMOTE, ("it was promoted before",)))
    report = _judge(work, stacked)
    decision = StackPolicy(work.recipe.promotion).decide(report, served=work.ledger.active)
    texts = {"stack_report.txt": _text(report, decision), "stack_report.json": report.model_dump_json(indent=2)}
    work.tracker.log_metrics(stacked.run_id, report.metrics())
    registry.attach(work.model, stacked.version, "promotion", texts)
    details = {"report": report.model_dump(mode="json"), "policy": work.recipe.promotion.model_dump(mode="json")}
    verdict = Verdict(decision.decision.value, decision.reasons, details, texts)
    if decision.decision is Decision.PROMOTE:
        registry.promote(lease, stacked.version, verdict, expected_champion=champion)
    else:
        registry.decline(lease, stacked.version, verdict)
    return Served(stacked, report, decision)


def _known_report(work: Work, stacked: Stacked) -> StackReport:
    """The report that a stack was promoted on; judged again where it is gone."""
    try:
        report = StackReport.load(_judged_folder(work, stacked) / "report.json")
    except DataError:
        return _judge(work, stacked)
    return report if report.stack_digest == stacked.digest else _judge(work, stacked)


def _judge(work: Work, stacked: Stacked) -> StackReport:
    """Score every request of a stack, as it comes out of the registry."""
    _version, folder = work.registry.download(work.model, stacked.version, work.folder("registry"))
    records = asked_for(work.recipe, work.ledger, also=stacked.members)
    ordinary = without(work.shared.splits, [record for rows in records.values() for record in rows])
    sets = StackSets.of(ordinary, {member: records[member] for member in stacked.members if member in records})
    reference = reference_path(work.recipe, work.shared.folder, work.shared.base)
    arguments = {
        "recipe": work.recipe,
        "base": work.shared.base,
        "stack_folder": folder,
        "sets": sets,
        "reference": reference.with_suffix(f".{work.recipe.ledger.name}.jsonl"),
        "folder": _judged_folder(work, stacked),
    }
    title = f"judging version {stacked.version}, {len(stacked.members)} request(s)"
    [report] = run_tasks(work.recipe, [HelperTask(title, judge_stack, arguments)], shared=work.recipe.output.absolute())
    assert isinstance(report, StackReport)
    return report


def _judged_folder(work: Work, stacked: Stacked) -> Path:
    return work.folder("judged", f"v{stacked.version}")


def _text(report: StackReport, decision: PromotionDecision) -> str:
    """The report to read."""
    rows = report.rows() | decision.rows()
    width = max(map(len, rows))
    lines = [f"{decision.decision.value}: a stack of {len(report.members)} request(s)"]
    return "\n".join([*lines, *(f"{name:<{width}}  {value}" for name, value in rows.items())]) + "\n"


def retire(work: Work, request_id: str, *, reason: str) -> int | None:
    """Take the champion away, as its only request is revoked, and write that down; return its version.

    Raises:
        GrunError: what went wrong.
    """
    with work.registry.promotion_lock(work.model, process_owner(), work.recipe.promotion.lock_lease_seconds) as lease:
        champion = work.registry.version_of(work.model, CHAMPION)
        if champion is not None:  # else a worker that vanished did it
            work.registry.retire(lease, Verdict("retire", (f"{request_id}, the only request, is revoked: {reason}",)))
    work.record("revoked", request_id, reason=reason, details=Details(model=work.model))
    return champion
