"""From a report to what its page shows: every number as text, every figure as SVG, in the order of the page."""

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from grun.evaluation.attacks import AttackResult, Leak
from grun.evaluation.html.explained import OWN_PARTS, SETS, explained, label_of
from grun.evaluation.report import EvalReport, Metric
from grun.evaluation.report_figures import Bars, before_after_figure, curve_figure, gates_figure, to_svg
from grun.evaluation.report_parts import Cost, Provenance
from grun.evaluation.wording import count_of, duration, megabytes, number, per_cent

__all__ = ["view_of"]

_BARS = (
    ("forget_unseen/rouge_l_recall", "forgotten answers,\nunseen words"),
    ("forget/rouge_l_recall", "forgotten answers,\nas trained"),
    ("retain/rouge_l_recall", "answers to keep"),
    ("holdout/rouge_l_recall", "ordinary answers"),
    ("model_utility", "usefulness"),
)

_HEADLINES = (*(name for name, _ in _BARS), "model_utility_ratio", "forget_quality")

_QUESTIONS = {
    "forgotten": "Forgotten enough?",
    "undamaged": "The rest undamaged?",
    "certified": "Certified?",
    "attacks": "Safe from attacks by prompts?",
}

_ABSENT = "\N{EN DASH}"

_ANSWERS = {"yes": ("Yes", "✓"), "no": ("No", "✗"), "unknown": ("Not known", "?")}


def view_of(report: EvalReport) -> dict[str, Any]:
    """The values that the template asks for."""
    provenance = report.provenance or Provenance()
    return {
        "request_id": provenance.request_id,
        "reason": provenance.request_reason,
        "date": provenance.date,
        "part": report.part,
        "verdict": _verdict(report),
        "headlines": _metric_rows(report, [report[name] for name in _HEADLINES if name in report]),
        "has_twin": "forget_quality" in report,
        "before_after": _drawn("bars", lambda wide: before_after_figure(_bars(report), wide=wide), _bars_title(report))
        if _bars(report)
        else None,
        "attacks": _attack_tables(report.attacks),
        "leak": _leak(report),
        "certificate": _certificate(report),
        "gates": _drawn("gates", lambda wide: gates_figure(report.gates, report.gate_threshold, wide=wide), _gates_title(report))
        if report.gates
        else None,
        "gate_rows": _metric_rows(report, [metric for metric in report.metrics if metric.name.startswith("gate/")]),
        "threshold": None if report.gate_threshold is None else f"{report.gate_threshold:g}",
        "has_adapter": report.adapter_digest is not None,
        "curve": _drawn("curve", lambda wide: curve_figure(report.curve, report.gate_threshold, wide=wide), _CURVE_TITLE)
        if report.curve
        else None,
        "curve_rows": _curve_rows(report),
        "cost": _cost_rows(report.cost or Cost()),
        "provenance": _provenance_rows(report, provenance),
        "metrics": _metric_rows(report, report.metrics),
        "digests": _set_digests(report),
    }


def _drawn(name: str, draw: Callable[[bool], Figure], title: str) -> dict[str, Markup]:
    """A figure in both widths; what `to_svg` returns is markup of ours, with the title escaped in it."""
    widths = {"narrow": False, "wide": True}
    return {width: Markup(to_svg(draw(wide), f"{name}-{width}", title)) for width, wide in widths.items()}


def _verdict(report: EvalReport) -> dict[str, Any]:
    if report.verdict is None:
        sentence = "No verdict was given: this report was not judged by a policy."
        return {"status": "undecided", "tone": "unknown", "sentence": sentence, "findings": []}
    verdict = report.verdict
    answers = {finding.question: finding.answer for finding in verdict.findings}
    tones = {"forgotten": "yes", "not forgotten": "no", "damaged": "no", "undecided": "unknown"}
    has_reservation = verdict.status == "forgotten" and "no" in answers.values()
    return {
        "status": f"{verdict.status}, with a reservation" if has_reservation else verdict.status,
        "tone": "unknown" if has_reservation else tones[verdict.status],
        "sentence": verdict.sentence,
        "findings": [
            {
                "question": _QUESTIONS[finding.question],
                "tone": finding.answer,
                "answer": _ANSWERS[finding.answer][0],
                "sign": _ANSWERS[finding.answer][1],
                "text": finding.text,
            }
            for finding in verdict.findings
        ],
    }


def _shown(name: str, value: float | None) -> str:
    return per_cent(value) if explained(name).is_share else number(value)


def _metric_rows(report: EvalReport, metrics: Sequence[Metric]) -> list[dict[str, str]]:
    """Rows of a table of metrics; what a family means is said once in it."""
    rows: list[dict[str, str]] = []
    said: set[str] = set()
    for metric in metrics:
        about, before = explained(metric.name), report.before(metric.name)
        rows.append(
            {
                "name": metric.name,
                "label": label_of(metric.name),
                "text": "" if about.label in said else about.text,
                "better": metric.better,
                "before": _ABSENT if before is None else _shown(metric.name, before),
                "after": _shown(metric.name, metric.value),
                "rows": f"{metric.num_samples:,}",
            }
        )
        said.add(about.label)
    return rows


def _bars(report: EvalReport) -> list[Bars]:
    return [
        Bars(label, report.before(name), report[name].value, report[name].direction == "lower")
        for name, label in _BARS
        if name in report
    ]


def _bars_title(report: EvalReport) -> str:
    parts = [
        f"{bar.label.replace(chr(10), ' ')} {per_cent(bar.before)} before and {per_cent(bar.after)} after"
        for bar in _bars(report)
    ]
    return f"Bar chart: {'; '.join(parts)}."


def _attack_tables(attacks: Sequence[AttackResult]) -> list[tuple[str, str, list[dict[str, str]]]]:
    """Title, introduction and rows, worst first, of the attacks by prompts and of those on the model."""
    kinds = (
        ("prompts", "Attacks by prompts", "Open to anybody who can ask."),
        ("model", "Attacks on the model", "Open to whoever holds the model's files. Nothing can be closed to them for good."),
    )
    tables = []
    for target, title, text in kinds:
        chosen = sorted((a for a in attacks if a.target == target), key=lambda a: (-a.forget_rouge_l_recall, a.name))
        if chosen:
            tables.append((title, text, [_attack_row(attack) for attack in chosen]))
    return tables


def _attack_row(attack: AttackResult) -> dict[str, str]:
    opened, worst = attack.ordinary_open_rate, attack.worst
    return {
        "name": attack.name,
        "description": attack.description,
        "num": f"{attack.num_prompts:,}",
        "before": _ABSENT if attack.base_rouge_l_recall is None else per_cent(attack.base_rouge_l_recall),
        "got": per_cent(attack.forget_rouge_l_recall),
        "worst": _ABSENT if worst is None else per_cent(worst.rouge_l_recall),
        "caught": _ABSENT if attack.forget_open_rate is None else per_cent(attack.forget_open_rate),
        "touched": _ABSENT if opened is None else count_of(opened, attack.num_ordinary),
    }


def _leak(report: EvalReport) -> dict[str, Any] | None:
    """The worst leak of the attacks by prompts, else of any."""
    by_prompts = [attack for attack in report.attacks if attack.target == "prompts"]
    found: list[tuple[float, str, Leak]] = [
        (attack.worst.rouge_l_recall, attack.name, attack.worst)
        for attack in by_prompts or report.attacks
        if attack.worst is not None
    ]
    if not found:
        return None
    _share, name, leak = max(found, key=lambda item: item[:2])
    texts = [("Asked", leak.prompt), ("To be forgotten", leak.answer), ("Said", leak.said)]
    return {
        "attack": name,
        "share": per_cent(leak.rouge_l_recall),
        "digest": leak.digest,
        "texts": [(label, text) for label, text in texts if text is not None],
    }


def _certificate(report: EvalReport) -> dict[str, Any] | None:
    if report.certificate is None:
        return None
    certificate = report.certificate
    counts = (("Chosen on", certificate.calibration), ("Checked on", certificate.check))
    return {
        "sentence": certificate.sentence,
        "holds": certificate.holds,
        "alpha": per_cent(certificate.alpha),
        "confidence": per_cent(1 - certificate.delta),
        "delta": per_cent(certificate.delta),
        "counts": [
            (name, f"{count.num_open:,} of {count.num_records:,}", per_cent(count.rate), per_cent(count.upper_bound))
            for name, count in counts
        ],
        "thresholds": [(f"{layer}", f"{value:.4g}") for layer, value in sorted(certificate.thresholds.items())],
        "digests": [
            ("Records it was chosen on", certificate.calibration.digest),
            ("Records it was checked on", certificate.check.digest),
            ("Base", certificate.base_digest),
            ("Adapter's numbers", certificate.tensors_sha256),
            ("This certificate", certificate.digest),
        ],
    }


def _gates_title(report: EvalReport) -> str:
    return f"Histograms of the gate values of forget and of ordinary prompts, {len({g.layer for g in report.gates})} panels."


_CURVE_TITLE = (
    "Line chart over the gate threshold: usefulness kept, forget prompts caught, answers still said, ordinary prompts touched."
)


def _curve_rows(report: EvalReport) -> list[dict[str, Any]]:
    def shown(value: float | None) -> str:
        return _ABSENT if value is None else per_cent(value)

    return [
        {
            "threshold": f"{point.threshold:g}",
            "is_own": point.threshold == report.gate_threshold,
            "caught": shown(point.forget_open_rate),
            "said": shown(point.forget_rouge_l_recall),
            "touched": shown(point.false_open_rate),
            "kept": shown(point.utility_ratio),
        }
        for point in report.curve
    ]


def _cost_rows(cost: Cost) -> list[tuple[str, str]]:
    share = cost.trained_share
    return [
        ("Training steps", number(cost.training_steps)),
        ("Training time", duration(cost.wall_seconds)),
        ("Workers", number(cost.num_workers)),
        ("Trained parameters", number(cost.trained_parameters)),
        ("Parameters of the base", number(cost.base_parameters)),
        ("Trained share", "not known" if share is None else f"{100 * share:.2g} %"),
        ("Prefix cache", megabytes(cost.cache_bytes)),
        ("Adapter on disk", megabytes(cost.adapter_bytes)),
    ]


def _provenance_rows(report: EvalReport, provenance: Provenance) -> list[tuple[str, str]]:
    version = provenance.registered_version
    rows: Sequence[tuple[str, object]] = (
        ("Request", provenance.request_id),
        ("Reason", provenance.request_reason),
        ("Scored on", provenance.date),
        ("Rows", {"all": "all", "validation": "validation half", "test": "test half"}[report.part]),
        ("Base", provenance.base_name),
        ("Base revision", provenance.base_revision),
        ("Base digest", report.base_digest),
        ("Base stored", report.base_variant or "as on disk"),
        ("Adapter digest", report.adapter_digest),
        ("Edited blocks", ", ".join(map(str, provenance.layers))),
        ("Rank", provenance.rank),
        ("Recipe", provenance.recipe_name),
        ("Objective", provenance.objective),
        ("Trained by", provenance.code_version),
        ("Scored by", report.created_by),
        ("Registered as", None if version is None else f"{provenance.registered_model} version {version}"),
        ("MLflow run", provenance.mlflow_run_id),
        *((f"Data digest: {name}", digest) for name, digest in provenance.data_digests.items()),
    )
    return [(label, "not known" if value in (None, "") else str(value)) for label, value in rows]


def _set_digests(report: EvalReport) -> list[tuple[str, str]]:
    """Digest of each set of prompts, once."""
    digests: dict[str, str] = {}
    for metric in report.metrics:
        name, _, _quantity = metric.name.rpartition("/")
        if name and name not in OWN_PARTS:
            digests.setdefault(SETS.get(name, name), metric.digest)
    return list(digests.items())
