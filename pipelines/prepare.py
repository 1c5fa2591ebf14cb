"""Prepare: read and split the records, pin the request, teach the small base where none is named, score the bases.

    python pipelines/prepare.py [--recipe FILE] [--field value]

Every other verb does this first by itself; preparing twice costs nothing.
"""

import pipelines.first  # noqa: F401 - before what takes seconds to import

# isort: split

import time
from collections.abc import Sequence
from pathlib import Path

from grun.config import Recipe
from grun.data.records import Record
from pipelines.checks import (
    check_answers,
    check_base,
    check_metrics,
    check_rows,
    check_tracking,
    note_missing_metrics,
)
from pipelines.cli import next_step, parse_command
from pipelines.cluster import check_resources, connected
from pipelines.console import check_writable, note, summary
from pipelines.prepared import Lesson, Prepared, plan, write_prepared
from pipelines.retain_logs import export_logs, export_path, import_logs
from pipelines.running import run_command
from pipelines.scoring import ask_reference, choices_path, questions_of, reference_path, report_base, score_reference
from pipelines.task_progress import tell_progress
from pipelines.tasks import HelperTask, run_tasks

__all__ = ["check", "main", "prepare", "teach_missing"]

_HARDLY_KNOWN = 0.2
"""ROUGE-L recall that a fluent guess can reach."""


def check(recipe: Recipe) -> Prepared:
    """Check everything that can be checked without a cluster.

    Raises:
        GrunError: the first thing that is wrong; nothing has been written.
    """
    check_writable(recipe.output)
    prepared = plan(recipe)
    check_answers(recipe, prepared.splits)
    check_base(recipe)
    check_metrics(recipe, prepared)
    if all(lesson.is_done for lesson in prepared.lessons):
        check_rows(recipe, prepared)
    check_tracking(recipe.tracking)
    return prepared


def prepare(recipe: Recipe, prepared: Prepared) -> None:
    """Teach what has to be taught, write the splits, and score base and retain-only model. Needs a connected cluster.

    Raises:
        GrunError: what is wrong with the records or the models.
    """
    note_missing_metrics(prepared)
    teach_missing(recipe, prepared)
    write_prepared(prepared)
    import_logs(recipe, prepared)
    models = [model for model in (prepared.base, prepared.retain_only) if model is not None]
    unscored = [model for model in models if not reference_path(recipe, prepared.folder, model).is_file()]
    tasks = [
        HelperTask(
            "scoring the base" if model == prepared.base else "scoring the retain-only model",
            score_reference,
            {"recipe": recipe, "prepared": prepared.folder, "model": model},
        )
        for model in unscored
    ]
    if (questions := questions_of(recipe)) and not choices_path(recipe, questions, prepared.base).is_file():
        arguments = {"recipe": recipe, "questions": questions, "model": prepared.base}
        tasks.append(HelperTask("asking the base the multiple-choice questions", ask_reference, arguments))
    run_tasks(recipe, tasks, shared=recipe.output.absolute())
    export_logs(recipe, prepared)
    known = report_base(recipe.replace({"evaluation": {"part": "all", "max_rows": None}}), prepared).value(
        "forget/rouge_l_recall"
    )
    if known < _HARDLY_KNOWN:
        note(
            f"the base hardly knows what it is to forget: ROUGE-L recall {known:.2f} on the forget set without an adapter; if that is "
            "a surprise, check `model.path`, and that the questions are asked as the model was taught them"
        )


def teach_missing(recipe: Recipe, prepared: Prepared) -> None:
    """Teach the models that are not there yet, and check the rows once there is a tokenizer. Needs a connected cluster.

    Raises:
        GrunError: what is wrong with the records.
    """
    missing = [lesson for lesson in prepared.lessons if not lesson.is_done]
    if not missing:
        return
    start = time.monotonic()
    arguments = {"recipe": recipe, "vocabulary": prepared.vocabulary}
    run_tasks(
        recipe,
        [HelperTask(f"teaching the {lesson.title}", teach, {**arguments, "lesson": lesson}) for lesson in missing],
        shared=recipe.output.absolute(),
    )
    note(f"taught {' and '.join(lesson.title for lesson in missing)} in {time.monotonic() - start:.0f} s")
    check_rows(recipe, prepared)


def teach(recipe: Recipe, vocabulary: Sequence[Record], lesson: Lesson, progress: Path) -> None:
    """Teach one small model. Runs as a task."""
    import torch

    from grun.lm.teach import teach_model

    torch.set_num_threads(1)

    def on_step(step: int, steps: int, _loss: float) -> None:
        if step % 10 == 0:
            tell_progress(progress, step, steps)

    teach_model(recipe.model.taught, recipe.prompt, lesson.records, vocabulary, lesson.folder, on_step=on_step)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    recipe, options = parse_command(
        "Read and split the records, teach the small base where none is named, score the bases.", argv
    )
    prepared = check(recipe)
    with connected(recipe):
        check_resources(recipe)
        prepare(recipe, prepared)
    rows = {name: str(len(getattr(prepared.splits, name))) for name in ("forget", "retain", "holdout")}
    summary(
        f"request {prepared.request.id}",
        {
            **{f"{name} records": count for name, count in rows.items()},
            "base": prepared.base,
            "prepared": str(prepared.folder),
            **(
                {"retain-only logs": str(logs)}
                if (logs := recipe.evaluation.retain_logs or export_path(recipe, prepared))
                else {}
            ),
        },
        [
            next_step("sweep", options.again, "find the best adapter"),
            next_step("train", options.again, "train the recipe's own adapter"),
        ],
    )
    return 0


if __name__ == "__main__":
    run_command(main)
