"""What a model without an adapter says and picks: scored once, as a Ray task, and cached; and what scoring an adapter shares with it.

    <output>/reference/<digest>.jsonl            every row of every set, scored on a model with no adapter, stored as the recipe says
    <output>/reference/<digest>.choices.jsonl    what it picks of multiple-choice questions

A task process keeps its base loaded, so a sweep loads it once and not once a trial.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grun.config import Recipe
from grun.data.multiple_choice import ChoiceQuestion, digest_questions, read_multiple_choice
from grun.data.prompts import PromptEncoder
from grun.evaluation.evaluate import Rows, Scorer
from grun.evaluation.multiple_choice import ChoiceRow, ask, read_choices, with_accuracy, write_choices
from grun.evaluation.report import EvalReport
from grun.evaluation.scores import ROW_VERSION, RowScore, read_rows, write_rows
from grun.evaluation.sets import EvalSet, evaluation_sets
from grun.evaluation.summary import RETAIN_ONLY_ROLES, ScoredSet, summarise
from grun.interventions import Edits
from grun.lm import PrefixCache, digest_weights, resolve_folder
from pipelines.loaded import loaded_base
from pipelines.prepared import Prepared, read_prepared
from pipelines.shared_caches import at_hand
from pipelines.task_progress import tell_progress

__all__ = [
    "Counter",
    "ask_questions",
    "ask_reference",
    "choices_path",
    "kept_rows",
    "make_scorer",
    "questions_of",
    "reference_path",
    "report_base",
    "retain_only_rows",
    "score_reference",
    "select_rows",
    "threshold_key",
]


def reference_path(recipe: Recipe, prepared: Path, model: str) -> Path:
    """Where the rows of a model without an adapter are cached."""
    asked: dict[str, str | int] = {"prepared": prepared.name, "max_new_tokens": recipe.evaluation.max_new_tokens}
    return recipe.output.absolute() / "reference" / f"{_identity(recipe, model, asked)}.jsonl"


def choices_path(recipe: Recipe, questions: Sequence[ChoiceQuestion], model: str) -> Path:
    """Where what a model without an adapter picks is cached."""
    asked: dict[str, str | int] = {"questions": digest_questions(questions)}
    return recipe.output.absolute() / "reference" / f"{_identity(recipe, model, asked)}.choices.jsonl"


def _identity(recipe: Recipe, model: str, asked: Mapping[str, str | int]) -> str:
    """Digest of everything that decides a model's rows."""
    identity = {
        "version": ROW_VERSION,
        "model": model,
        "revision": recipe.model.revision,
        "dtype": recipe.model.dtype,
        "variant": asdict(variant) if (variant := recipe.model.variant) else None,
        "prompt": recipe.prompt.model_dump(mode="json"),
        **asked,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def threshold_key(threshold: float | None) -> str:
    """A gate threshold as a file name and dictionary key; of a calibrated one, every digit."""
    if threshold is None:
        return "soft"
    return f"{threshold:g}" if float(f"{threshold:g}") == threshold else repr(threshold)


def score_reference(recipe: Recipe, prepared: Path, model: str, progress: Path | None = None) -> Path:
    """Score all rows on a model without an adapter, unless the cache has them; returns the cache file. Runs as a task."""
    path = reference_path(recipe, prepared, model)
    if path.is_file():
        return path
    _request, splits = read_prepared(prepared)
    sets = evaluation_sets(splits)
    total = sum(len(s.prompts) for s in sets)
    scorer = make_scorer(recipe, model, Counter(progress, total))
    rows = scorer.score(sets)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, kept_rows(recipe, sets, rows))
    return path


def questions_of(recipe: Recipe) -> tuple[ChoiceQuestion, ...]:
    """The multiple-choice questions that a recipe names; none where it names no file.

    Raises:
        DataError: the file is missing or malformed.
    """
    path = recipe.evaluation.multiple_choice
    return () if path is None else read_multiple_choice(Path(path))


def ask_reference(
    recipe: Recipe, questions: Sequence[ChoiceQuestion], model: str, progress: Path | None = None
) -> tuple[ChoiceRow, ...]:
    """Ask a model without an adapter, unless the cache has its answers. Runs as a task."""
    path = choices_path(recipe, questions, model)
    if path.is_file():
        return read_choices(path)
    scorer = make_scorer(recipe, model, Counter(progress, len(questions)))
    rows = ask_questions(scorer, questions)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_choices(path, rows)
    return rows


def ask_questions(
    scorer: Scorer, questions: Sequence[ChoiceQuestion], adapter: Edits | None = None, threshold: float | None = None
) -> tuple[ChoiceRow, ...]:
    """What a base picks, with an adapter or without."""
    return ask(
        scorer.lm,
        scorer.encoder,
        questions,
        batch_size=scorer.batch_size,
        adapter=adapter,
        threshold=threshold,
        on_progress=scorer.on_progress,
    )


def report_base(recipe: Recipe, prepared: Prepared) -> EvalReport:
    """The base's own report, from the rows that `prepare` has scored; runs no model.

    Args:
        recipe: `evaluation.part` says which rows.
    """
    evaluation = recipe.evaluation
    sets = evaluation_sets(prepared.splits, part=evaluation.part, max_rows=evaluation.max_rows)
    rows = select_rows(sets, reference_path(recipe, prepared.folder, prepared.base))
    report = summarise(
        [ScoredSet(s.name, s.role, s.digest, rows[s.name]) for s in sets],
        base_digest=digest_weights(resolve_folder(prepared.base, recipe.model.revision)),
        base_variant=variant.name if (variant := recipe.model.variant) else None,
        base_rows=rows,
        retain_only_rows=retain_only_rows(recipe, prepared.folder, sets, prepared.retain_only),
        part=evaluation.part,
    )
    if not (questions := questions_of(recipe)):
        return report
    return with_accuracy(report, questions, read_choices(choices_path(recipe, questions, prepared.base)))


def retain_only_rows(recipe: Recipe, prepared: Path, sets: Sequence[EvalSet], retain_only: str | None) -> Rows | None:
    """The rows of the model that never saw the forget set, of the sets that they are needed for."""
    if retain_only is None:
        return None
    return select_rows([s for s in sets if s.role in RETAIN_ONLY_ROLES], reference_path(recipe, prepared, retain_only))


def kept_rows(recipe: Recipe, sets: Sequence[EvalSet], rows: Rows) -> list[RowScore]:
    """The rows as they are written: what a model said to forget prompts is left out unless `tracking.keep_text`."""
    sensitive = {s.name for s in sets if s.role in ("forget", "forget_unseen") and not recipe.tracking.keep_text}
    return [replace(row, generated=None) if s.name in sensitive else row for s in sets for row in rows[s.name]]


def select_rows(sets: Sequence[EvalSet], path: Path) -> Rows:
    """The rows of some sets out of a reference file, in the order of the sets' prompts."""
    known = {(row.set_name, row.digest, row.prompt): row for row in read_rows(path)}
    return {s.name: tuple(known[s.name, p.record.digest, p.wording] for p in s.prompts) for s in sets}


class Counter:
    """Writes how far scoring is to a file that the driver reads."""

    def __init__(self, path: Path | None, total: int) -> None:
        self.path = path
        self.total = total
        self.done = 0

    def __call__(self, rows: int) -> None:
        """Count rows that are done."""
        self.done += rows
        tell_progress(self.path, self.done, self.total)


def make_scorer(recipe: Recipe, model: str, on_progress: Any, cache: Path | None = None) -> Scorer:
    """What scores a model of the recipe in this process."""
    lm = loaded_base(recipe, model)
    encoder = PromptEncoder(lm.tokenizer, recipe.prompt, context=lm.context)
    folder = at_hand(recipe, cache)
    opened = None if folder is None else PrefixCache.open(folder, verify=False)
    return Scorer(lm, encoder, recipe.evaluation.batch_size, recipe.evaluation.max_new_tokens, on_progress, opened)
