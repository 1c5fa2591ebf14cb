"""From a report to a verdict: whether the request is fulfilled, in a word, in a sentence, and by four answers.

    not forgotten    more of the forgotten answers is said than the policy allows
    damaged          forgotten, but usefulness is lost, or too many ordinary prompts are touched
    undecided        a number that decides is missing, or the gate does not part the prompts well enough to rely on it
    forgotten        none of these

The bounds are those of the promotion policy. Attacks have no bound of their own: what the worst one that only changes the prompt
gets is held against that of plain prompts and said in the same sentence.
"""

from grun.config import PromotionConfig
from grun.evaluation.attacks import AttackResult
from grun.evaluation.report import EvalReport
from grun.evaluation.report_parts import Finding, Status, Verdict
from grun.evaluation.wording import count_of, per_cent

__all__ = ["AUROC", "FALSE_OPEN", "FORGETTING", "UTILITY", "give_verdict", "worst_attack"]

FORGETTING, UTILITY = "forget_unseen/rouge_l_recall", "model_utility_ratio"
AUROC, FALSE_OPEN = "gate/auroc", "gate/false_open_rate"

_LEADS: dict[Status, str] = {
    "forgotten": "Forgotten",
    "not forgotten": "Not forgotten",
    "damaged": "Damaged",
    "undecided": "Undecided",
}


def give_verdict(report: EvalReport, bounds: PromotionConfig) -> Verdict:
    """Judge a report by the bounds of the promotion policy."""
    forgotten, undamaged, attacked = _forgotten(report, bounds), _undamaged(report, bounds), _attacked(report, bounds)
    findings = (forgotten, undamaged, _certified(report), attacked)
    status = _status(report, bounds, forgotten, undamaged)
    return Verdict(status=status, sentence=_sentence(report, bounds, status, undamaged, attacked), findings=findings)


def worst_attack(report: EvalReport) -> AttackResult | None:
    """The attack by prompts alone that gets most; of two that get the same, the first by name."""
    by_prompts = sorted((a for a in report.attacks if a.target == "prompts"), key=lambda attack: attack.name)
    return max(by_prompts, key=lambda attack: attack.forget_rouge_l_recall, default=None)


def _known(report: EvalReport, name: str) -> float | None:
    return report[name].value if name in report else None


def _status(report: EvalReport, bounds: PromotionConfig, forgotten: Finding, undamaged: Finding) -> Status:
    if forgotten.answer == "no":
        return "not forgotten"
    if undamaged.answer == "no":
        return "damaged"
    auroc = _known(report, AUROC)
    if "unknown" in (forgotten.answer, undamaged.answer) or auroc is None or auroc < bounds.min_gate_auroc:
        return "undecided"
    return "forgotten"


def _said(report: EvalReport) -> str:
    """How much of the forgotten answers is said, before and after."""
    before = report.before(FORGETTING)
    was = "" if before is None else f", where it said {per_cent(before)} before"
    return f"asked in words it was not trained on, the model says {per_cent(_known(report, FORGETTING))} of what was to be forgotten{was}"


def _forgotten(report: EvalReport, bounds: PromotionConfig) -> Finding:
    value = _known(report, FORGETTING)
    if value is None:
        text = "How much of the forgotten answers is still said was not measured."
        return Finding(question="forgotten", answer="unknown", text=text)
    text = f"{_capital(_said(report))}. At most {per_cent(bounds.max_forget_rouge)} is allowed."
    return Finding(question="forgotten", answer="yes" if value <= bounds.max_forget_rouge else "no", text=text)


def _undamaged(report: EvalReport, bounds: PromotionConfig) -> Finding:
    utility, false_open = _known(report, UTILITY), _known(report, FALSE_OPEN)
    parts = [
        "What is left of the model's usefulness is not known."
        if utility is None
        else f"The model keeps {per_cent(utility)} of its usefulness (at least {per_cent(bounds.min_utility_ratio)} is asked for).",
        "How many ordinary prompts the edit touches is not known."
        if false_open is None
        else f"The edit touches {count_of(false_open, report[FALSE_OPEN].num_samples)} ordinary prompts "
        f"(at most {per_cent(bounds.max_false_open_rate)} is allowed).",
    ]
    is_bad = (utility is not None and utility < bounds.min_utility_ratio) or (
        false_open is not None and false_open > bounds.max_false_open_rate
    )
    answer = "no" if is_bad else "unknown" if utility is None or false_open is None else "yes"
    return Finding.model_validate({"question": "undamaged", "answer": answer, "text": " ".join(parts)})


def _certified(report: EvalReport) -> Finding:
    if report.certificate is None:
        text = "Nothing is promised: no certificate was made for this adapter."
        return Finding(question="certified", answer="unknown", text=text)
    certificate, check = report.certificate, report.certificate.check
    if certificate.base_digest != report.base_digest:
        text = "The certificate was made on another base, and promises nothing about this one."
        return Finding(question="certified", answer="no", text=text)
    counted = f"Of the records kept aside to check it {check.num_open:,} of {check.num_records:,} were."
    if not certificate.holds:
        text = (
            f"Nothing is promised: the counts do not bear out that at most {per_cent(certificate.alpha)} are touched. {counted}"
        )
        return Finding(question="certified", answer="no", text=text)
    text = f"With {per_cent(1 - certificate.delta)} confidence at most {per_cent(certificate.alpha)} of ordinary prompts are touched. {counted}"
    return Finding(question="certified", answer="yes", text=text)


def _attacked(report: EvalReport, bounds: PromotionConfig) -> Finding:
    if not report.attacks:
        text = "No attack was tried, so what somebody who tries gets is not known."
        return Finding(question="attacks", answer="unknown", text=text)
    if (worst := worst_attack(report)) is None:
        text = f"No attack by prompts was tried, only {len(report.attacks)} on the model itself; see the table."
        return Finding(question="attacks", answer="unknown", text=text)
    got = worst.forget_rouge_l_recall
    text = f"The worst way of asking, {worst.name}, gets {per_cent(got)} of what was to be forgotten."
    if on_model := [attack for attack in report.attacks if attack.target == "model"]:
        most = max(on_model, key=lambda attack: attack.forget_rouge_l_recall)
        text += f" Who holds the model's files gets {per_cent(most.forget_rouge_l_recall)} ({most.name})."
    return Finding(question="attacks", answer="yes" if got <= bounds.max_forget_rouge else "no", text=text)


def _sentence(report: EvalReport, bounds: PromotionConfig, status: Status, undamaged: Finding, attacked: Finding) -> str:
    lead = _LEADS[status]
    if status == "not forgotten" and undamaged.answer == "no":
        lead = "Not forgotten, and damaged"
    parts = []
    if _known(report, FORGETTING) is not None:
        parts.append(_said(report))
    utility, false_open, auroc = (_known(report, name) for name in (UTILITY, FALSE_OPEN, AUROC))
    if utility is not None:
        parts.append(f"it keeps {per_cent(utility)} of its usefulness")
    if false_open is not None:
        parts.append(f"{count_of(false_open, report[FALSE_OPEN].num_samples)} ordinary prompts are touched")
    missing = [
        word
        for word, value in (
            ("how much is still said", _known(report, FORGETTING)),
            ("the usefulness that is left", utility),
            ("how many ordinary prompts are touched", false_open),
            ("how well the gate parts the prompts", auroc),
        )
        if value is None
    ]
    if missing:
        parts.append(f"not known: {', '.join(missing)}")
    if auroc is not None and auroc < bounds.min_gate_auroc:
        parts.append(
            f"the gate parts forget from ordinary prompts with {auroc:.3f} only, where {bounds.min_gate_auroc:g} is asked for"
        )
    worst = worst_attack(report)
    if worst is not None and attacked.answer == "no":
        parts.append(f"the worst way of asking ({worst.name}) still gets {per_cent(worst.forget_rouge_l_recall)}")
    return f"{lead}: {'; '.join(parts)}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
