"""Attacks as a Ray task: try some on an adapter, and show what they got."""

from collections.abc import Sequence
from pathlib import Path

from grun.adapters import load_adapter
from grun.config import Recipe
from grun.data.prompts import PromptEncoder
from grun.data.records import Record
from grun.evaluation.attacks import AttackResult
from grun.evaluation.attacks.bench import Bench, Skipped
from grun.evaluation.attacks.table import run_attack
from grun.evaluation.report import EvalReport
from grun.evaluation.sets import evaluation_sets
from pipelines.console import note
from pipelines.loaded import loaded_base
from pipelines.prepared import Prepared, read_prepared
from pipelines.task_progress import tell_progress
from pipelines.tasks import HelperTask, run_tasks

__all__ = ["attack", "attack_adapter", "attack_metrics", "attack_rows"]


def attack(recipe: Recipe, prepared: Prepared, adapter: Path, report: EvalReport, names: Sequence[str]) -> EvalReport:
    """Try attacks as one task on the cluster and return the report with what they got."""
    if not names:
        return report
    arguments = {
        "recipe": recipe,
        "prepared": prepared.folder,
        "base": prepared.base,
        "adapter_folder": adapter,
        "names": tuple(names),
    }
    [outcomes] = run_tasks(
        recipe, [HelperTask(f"{len(names)} attack(s)", attack_adapter, arguments)], shared=recipe.output.absolute()
    )
    for skipped in outcomes:
        if isinstance(skipped, Skipped):
            note(f"attack `{skipped.name}` was not tried: {skipped.reason}")
    results = tuple(outcome for outcome in outcomes if isinstance(outcome, AttackResult))
    return report.model_copy(update={"attacks": results})


def attack_adapter(
    recipe: Recipe, prepared: Path, base: str, adapter_folder: Path, names: Sequence[str], progress: Path | None = None
) -> list[AttackResult | Skipped]:
    """Try attacks on an adapter at its own gate threshold. Runs as a task.

    Args:
        recipe: `evaluation.part` says which rows; `tracking.keep_text` whether leaks may be quoted.
    """
    bench = _bench(recipe, prepared, base, adapter_folder)
    outcomes: list[AttackResult | Skipped] = []
    for name in names:
        outcomes.append(run_attack(name, bench, keep_text=recipe.tracking.keep_text))
        tell_progress(progress, len(outcomes), len(names))
    return outcomes


def _bench(recipe: Recipe, prepared: Path, base: str, adapter_folder: Path) -> Bench:
    _request, splits = read_prepared(prepared)
    lm = loaded_base(recipe, base)
    adapter, card = load_adapter(adapter_folder, lm)
    evaluation = recipe.evaluation
    sets = evaluation_sets(splits, part=evaluation.part, max_rows=evaluation.max_rows)

    def records(role: str) -> tuple[Record, ...]:
        return tuple(dict.fromkeys(prompt.record for s in sets if s.role == role for prompt in s.prompts))

    return Bench(
        lm=lm,
        encoder=PromptEncoder(lm.tokenizer, recipe.prompt, context=lm.context),
        adapter=adapter,
        threshold=card.adapter.gate_threshold,
        forget=records("forget"),
        known=splits.forget,
        ordinary=records("holdout"),
        max_new_tokens=evaluation.max_new_tokens,
        batch_size=evaluation.batch_size,
        seed=recipe.seed,
    )


def attack_metrics(report: EvalReport) -> dict[str, float]:
    """What attacks got, as metrics `attack/<name>/<quantity>`."""
    quantities = (
        "forget_rouge_l_recall",
        "base_rouge_l_recall",
        "before_rouge_l_recall",
        "forget_open_rate",
        "ordinary_open_rate",
    )
    return {
        f"attack/{result.name}/{quantity}": value
        for result in report.attacks
        for quantity in quantities
        if (value := getattr(result, quantity)) is not None
    }


def attack_rows(report: EvalReport) -> dict[str, str]:
    """What attacks got as lines of a summary, the worst first."""
    ranked = sorted(report.attacks, key=lambda result: (-result.forget_rouge_l_recall, result.name))
    return {f"attack {result.name}": _row(result) for result in ranked}


def _row(result: AttackResult) -> str:
    before = [
        f"{name} {value:.3f}"
        for name, value in (("base", result.base_rouge_l_recall), ("before", result.before_rouge_l_recall))
        if value is not None
    ]
    opens = [
        f"{value:.1%} of {count} {name} open a gate"
        for name, value, count in (
            ("forget", result.forget_open_rate, result.num_prompts),
            ("ordinary", result.ordinary_open_rate, result.num_ordinary),
        )
        if value is not None
    ]
    dropped = [f"{result.num_dropped} too long"] if result.num_dropped else []
    shown = f" ({', '.join(before)})" if before else ""
    return "; ".join([f"{result.forget_rouge_l_recall:.3f} said{shown}", *opens, *dropped])
