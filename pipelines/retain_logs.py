"""Retain-only logs of a run: written where a retain-only model is scored, read where it is not.

    <output>/reference/<digest>.retain_logs.jsonl      see :mod:`grun.evaluation.retain_logs`

Logs that are read take the place of a model's cached rows, under a name of their own. So whoever needs a retain-only
model's numbers finds them, and cannot tell the difference.
"""

from pathlib import Path

from grun.config import Recipe
from grun.data.records import digest_records
from grun.evaluation.retain_logs import RetainLogs, RetainLogsHeader, check_retain_logs, read_retain_logs, write_retain_logs
from grun.evaluation.scores import read_rows, write_rows
from grun.evaluation.sets import EvalSet, evaluation_sets
from grun.evaluation.summary import RETAIN_ONLY_ROLES
from grun.lm import digest_weights, resolve_folder
from pipelines.prepared import Prepared
from pipelines.scoring import reference_path

__all__ = ["check_logs", "export_logs", "export_path", "import_logs"]


def export_path(recipe: Recipe, prepared: Prepared) -> Path | None:
    """Where the logs of this run are written.

    None without a retain-only model, where its logs were given, and where it is quantised: logs are of a model as it is on disk.
    """
    if prepared.retain_only is None or recipe.evaluation.retain_logs is not None or recipe.model.variant is not None:
        return None
    return reference_path(recipe, prepared.folder, prepared.retain_only).with_suffix(".retain_logs.jsonl")


def export_logs(recipe: Recipe, prepared: Prepared) -> Path | None:
    """Write the logs beside the retain-only model's rows, unless they are there; returns the file."""
    path = export_path(recipe, prepared)
    if path is None or path.is_file():
        return path
    assert prepared.retain_only is not None
    names = {s.name for s in _sets(prepared)}
    header = RetainLogsHeader(
        base_digest=digest_weights(resolve_folder(prepared.base, recipe.model.revision)),
        model_digest=digest_weights(resolve_folder(prepared.retain_only)),
        dtype=recipe.model.dtype,
        prompt=recipe.prompt,
        max_new_tokens=recipe.evaluation.max_new_tokens,
        sets=_digests(prepared),
    )
    rows = [row for row in read_rows(reference_path(recipe, prepared.folder, prepared.retain_only)) if row.set_name in names]
    write_retain_logs(path, header, rows)
    return path


def check_logs(recipe: Recipe, prepared: Prepared) -> RetainLogs | None:
    """Read the logs that the recipe names and refuse those of another request, base or prompt; None where it names none.

    Raises:
        DataError: with what is wrong about them.
    """
    if recipe.evaluation.retain_logs is None:
        return None
    path = Path(recipe.evaluation.retain_logs)
    logs = read_retain_logs(path)
    # a base that is still to be taught has no digest yet
    is_there = all(lesson.is_done for lesson in prepared.lessons)
    check_retain_logs(
        logs,
        where=str(path),
        prompt=recipe.prompt,
        max_new_tokens=recipe.evaluation.max_new_tokens,
        sets=_digests(prepared),
        prompts={s.name: [(prompt.record.digest, prompt.wording) for prompt in s.prompts] for s in _sets(prepared)},
        base_digest=digest_weights(resolve_folder(prepared.base, recipe.model.revision)) if is_there else None,
    )
    return logs


def import_logs(recipe: Recipe, prepared: Prepared) -> None:
    """Check the logs that the recipe names and put their rows where those of a retain-only model are looked for.

    Raises:
        DataError: as :func:`check_logs`.
    """
    logs = check_logs(recipe, prepared)
    if logs is None:
        return
    assert prepared.retain_only is not None
    path = reference_path(recipe, prepared.folder, prepared.retain_only)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, logs.rows)


def _sets(prepared: Prepared) -> list[EvalSet]:
    """The sets that a retain-only model's numbers are compared on."""
    return [s for s in evaluation_sets(prepared.splits) if s.role in RETAIN_ONLY_ROLES]


def _digests(prepared: Prepared) -> dict[str, str]:
    return {s.name: digest_records(prompt.record for prompt in s.prompts) for s in _sets(prepared)}
