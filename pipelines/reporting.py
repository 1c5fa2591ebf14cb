"""From a scored report to one that people read: verdict, cost and provenance are added, and a page is made of it.

<threshold>/report.json    the report
<threshold>/report.html    the same numbers for people
"""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import safe_open

from grun.adapters import AdapterCard, read_card
from grun.config import Recipe
from grun.errors import AdapterError
from grun.evaluation.html import render
from grun.evaluation.report import EvalReport
from grun.evaluation.report_parts import Cost, Provenance
from grun.evaluation.scores import write_atomically
from grun.evaluation.verdict import give_verdict
from grun.lm import resolve_folder
from grun.lm.frozen import count_parameters
from pipelines.entry import OUTCOME_FILE
from pipelines.prepared import Prepared
from pipelines.registry import Registry
from pipelines.trainer import CLAIM_FILE, read_claim, read_outcome

__all__ = ["attach_report", "complete", "page_step", "publish"]


def complete(
    report: EvalReport,
    base: EvalReport,
    recipe: Recipe,
    prepared: Prepared,
    adapter: Path,
    *,
    run_id: str | None,
    version: int | None,
) -> EvalReport:
    """Add to a report what came before, what it took, what it is about and a verdict.

    Args:
        base: the base's own report on the same rows.
        run_id: the MLflow run that will hold the report.
        version: the adapter's version in the registry.
    """
    card = read_card(adapter)
    run = next(_runs_of(recipe.output.absolute(), card), None)
    whole = report.model_copy(
        update={
            "base_metrics": base.metrics,
            "cost": _cost(recipe, prepared, adapter, card, run),
            "provenance": Provenance(
                request_id=prepared.request.id,
                request_reason=prepared.request.reason,
                data_digests=prepared.request.data_digests,
                base_name=_without_place(card.base_name),
                base_revision=card.base_revision,
                recipe_name=recipe.name,
                objective=None if run is None else _objective(run),
                layers=tuple(card.adapter.layers or ()),
                rank=card.adapter.rank,
                code_version=f"grun {card.code_version}",
                date=datetime.now(UTC).date().isoformat(),
                mlflow_run_id=run_id,
                registered_model=None if version is None else recipe.registered_model,
                registered_version=version,
            ),
        }
    )
    return whole.model_copy(update={"verdict": give_verdict(whole, recipe.promotion)})


def publish(report: EvalReport, folder: Path) -> Path:
    """Write a report and its page into a folder, and return the page.

    Raises:
        DataError: the folder cannot be written to.
    """
    page = folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    report.save(folder / "report.json")
    write_atomically(page, render(report))
    return page


def attach_report(registry: Registry, recipe: Recipe, version: int, occasion: str, page: Path) -> None:
    """Store a published report where people look for it: with the run that the model's version came from."""
    texts = {name: page.with_name(name).read_text(encoding="utf-8") for name in ("report.html", "report.json")}
    registry.attach(recipe.registered_model, version, f"{occasion}/v{version}", texts)


def page_step(page: Path) -> str:
    """The page as a step to go on with."""
    return f"open {page}    read the verdict and what it rests on"


def _without_place(name: str) -> str:
    """A hub name as it is; of a folder its own name, as the way to it is this machine's."""
    return Path(name).name if Path(name).is_absolute() else name


def _runs_of(output: Path, card: AdapterCard) -> Iterator[Path]:
    """Folders of training runs below the output folder that left the adapter's very tensors."""
    for pattern in (f"runs/*/{OUTCOME_FILE}", f"sweeps/*/trials/*/{OUTCOME_FILE}"):
        for outcome in sorted(output.glob(pattern)):
            try:
                found = read_card(outcome.parent / "adapter")
            except AdapterError:  # of an older version, or being written just now
                continue
            if found.tensors_sha256 == card.tensors_sha256:
                yield outcome.parent


def _objective(run: Path) -> str | None:
    """What a training run minimised, from the settings that its folder, or its sweep's, was claimed with."""
    for folder in (run, *run.parents[1:2]):
        if (folder / CLAIM_FILE).is_file():
            sections: dict[str, Any] = read_claim(folder).get("objective", {})
            terms = [f"{name} {term['kind']}" for name, term in sections.items() if isinstance(term, dict) and "kind" in term]
            return ", ".join(terms) or None
    return None


def _count_trained(adapter: Path) -> int:
    """Numbers that training moves; an adapter's whole numbers only say what it is of."""
    count = 0
    for path in adapter.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = (file.get_slice(name) for name in file.keys())  # noqa: SIM118 - no mapping
            count += sum(math.prod(tensor.get_shape()) for tensor in tensors if tensor.get_dtype().startswith(("F", "BF")))
    return count


def _cost(recipe: Recipe, prepared: Prepared, adapter: Path, card: AdapterCard, run: Path | None) -> Cost:
    outcome = read_outcome(run) if run is not None else None
    trained, base = _count_trained(adapter), count_parameters(resolve_folder(prepared.base, recipe.model.revision))
    return Cost(
        training_steps=card.steps or None,
        wall_seconds=outcome.wall_seconds if outcome else None,
        num_workers=outcome.num_workers if outcome else None,
        trained_parameters=trained,
        base_parameters=base or None,
        trained_share=trained / base if base else None,
        cache_bytes=outcome.cache_bytes if outcome else None,
        adapter_bytes=sum(file.stat().st_size for file in adapter.iterdir() if file.is_file()),
    )
