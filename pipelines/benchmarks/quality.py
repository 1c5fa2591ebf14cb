"""`quality`: GRUN against what unlearning is usually done with, on the same rows, base and report.

Every system meets every objective. A small grid of points is trained for each; the point, and with gates the threshold, is
the one that a sweep would choose on the validation half. It alone is then judged on the test half. Everything runs in this
process on one thread, so that CPU times compare. A row that is done is kept in `work` and not computed again.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grun.compared import ChangedBase
from grun.config import Recipe
from grun.errors import TrainingError
from grun.evaluation.report import EvalReport
from grun.evaluation.verdict import FORGETTING, UTILITY
from grun.interventions import Adapter
from grun.lm import PrefixCache
from pipelines.benchmarks.harness import Options, Report
from pipelines.benchmarks.quality_base import QualityBase, quality_recipe
from pipelines.benchmarks.quality_report import comparisons, quality_figure, quality_table
from pipelines.benchmarks.quality_systems import OBJECTIVES, SYSTEMS, Point, System, Trained, train_point
from pipelines.console import check_writable, note, progress
from pipelines.sweep_trial import sweep_score

__all__ = ["Choice", "run"]

_VERSION = 3
"""Raised by whoever changes what a row is, so that rows of the old kind are computed again."""

_VALIDATION_ROWS = 64
"""Rows per set that a point is chosen by."""


@dataclass(frozen=True)
class _Cell:
    """A system under an objective."""

    name: str
    objective: str

    @property
    def system(self) -> System:
        return SYSTEMS[self.name]

    def points(self, options: Options) -> list[Point]:
        """The grid; thin on TOFU, where a point takes minutes."""
        points = self.system.points(self.objective, thin=options.data_kind == "tofu")
        return points[:2] if options.tiny else points


@dataclass
class Choice:
    """The best point so far, and every one that was tried."""

    tried: list[dict[str, Any]] = field(default_factory=list)
    score: float = float("-inf")
    point: Point | None = None
    threshold: float | None = None
    trained: Trained | None = None

    def offer(
        self, point: Point, threshold: float | None, trained: Trained, forgetting: float, utility: float, score: float
    ) -> None:
        """A higher threshold wins a tie: it opens gates less often."""
        numbers = {"forget_rouge_unseen": forgetting, "utility_ratio": utility, "score": score}
        self.tried.append({**asdict(point), "gate_threshold": threshold, **numbers})
        if score > self.score or (score == self.score and point == self.point):
            self.score, self.point, self.threshold, self.trained = score, point, threshold, trained


def run(options: Options) -> Report:
    """Fill the table.

    Raises:
        DataError: TOFU is not where it should be.
    """
    recipe = quality_recipe(options)
    check_writable(recipe.output)
    base = QualityBase.open(recipe)
    kept = options.work / f"quality-{options.data_kind}{'-tiny' if options.tiny else ''}"
    kept.mkdir(parents=True, exist_ok=True)
    cells = [_Cell(name, objective) for objective in OBJECTIVES for name in SYSTEMS]
    records = _references(base)
    with ExitStack() as stack:
        cache = _LazyCache(base, stack, options.work)
        total = sum(len(cell.points(options)) for cell in cells)
        advance = stack.enter_context(progress(f"quality on {options.data_kind}: trained points", total))
        for cell in cells:
            path = kept / f"{cell.name}-{cell.objective}-{_identity(base, cell, options)}.json"
            if path.is_file():
                advance(len(cell.points(options)))
            else:
                record = _fill(base, cell, cache, options, advance)
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(record, indent=2), encoding="utf-8")
                partial.replace(path)
            records.append(json.loads(path.read_text(encoding="utf-8")))
            note(_line(records[-1]))
    name = "quality" if options.data_kind == "testbed" else f"quality_{options.data_kind}"
    return Report(
        comparisons(name, records),
        quality_figure(f"Forgetting and utility on the test half: {options.data_kind}", records),
        _workload(base, options),
        name=name,
        records=records,
        table=quality_table(records),
    )


class _LazyCache:
    """The prefix cache of all adapters: built when the first needs it, and gone with the benchmark."""

    def __init__(self, base: QualityBase, stack: ExitStack, work: Path) -> None:
        self.base, self.stack, self.work = base, stack, work
        self.built: tuple[PrefixCache, float] | None = None

    def get(self) -> tuple[PrefixCache, float]:
        """The cache, and the CPU seconds that its building took."""
        if self.built is None:
            note("building the prefix cache")
            folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=self.work)))
            variants = [self.base.recipe.replace({"objective": objective}) for objective in OBJECTIVES.values()]
            self.built = self.base.build_cache(variants, folder)
        return self.built


def _fill(base: QualityBase, cell: _Cell, cache: _LazyCache, options: Options, advance: Callable[[int], None]) -> dict[str, Any]:
    """One row of the table: train the grid, choose on validation rows, judge on test rows."""
    system = cell.system
    rows, seconds = cache.get() if system.change == "adapter" else (None, 0.0)
    choice = Choice()
    steps_per_epoch = -(-len(base.prepared.splits.forget) // base.recipe.train.batch_size)
    for point in cell.points(options):
        recipe = system.recipe(base.recipe, cell.objective, point, steps_per_epoch)
        try:
            _try(base, system, point, train_point(base, system, recipe, rows), choice)
        except TrainingError as error:  # a point that cannot be trained is a result of the search and not the end of it
            choice.tried.append({**asdict(point), "gate_threshold": None, "failure": str(error)})
        advance(1)
    if choice.trained is None:
        raise TrainingError(f"at least one point of a grid must be trainable, got none for {cell.name} under {cell.objective}")
    return {**_judge(base, cell, choice), "cache_cpu_seconds": seconds, "tried": choice.tried}


def _subject(trained: Trained) -> Any:
    return trained.result.lm if isinstance(trained.result, ChangedBase) else trained.result


def _gated_layers(trained: Trained) -> tuple[int, ...]:
    return trained.result.gated_layers if isinstance(trained.result, Adapter) else ()


def _try(base: QualityBase, system: System, point: Point, trained: Trained, choice: Choice) -> None:
    """Score a trained point on the sets that a sweep chooses by."""
    sets = [s for s in base.sets("validation", max_rows=_VALIDATION_ROWS) if s.role in ("forget_unseen", "utility", "retain")]
    for threshold, rows in base.score(_subject(trained), sets, system.thresholds).items():
        report = base.report(sets, rows, "validation", layers=_gated_layers(trained), threshold=threshold)
        forgetting, utility = report.value(FORGETTING), report[UTILITY].value or 0.0
        choice.offer(point, threshold, trained, forgetting, utility, sweep_score(base.recipe, forgetting, utility))


def _judge(base: QualityBase, cell: _Cell, choice: Choice) -> dict[str, Any]:
    """Judge the chosen point once, on the test half. Ordinary prompts are asked only where a gate could open for them."""
    trained, point = choice.trained, choice.point
    assert trained is not None
    assert point is not None
    layers = _gated_layers(trained)
    sets = [s for s in base.sets("test") if s.role != "holdout" or layers]
    rows = base.score(_subject(trained), sets, [choice.threshold])[choice.threshold]
    report = base.report(sets, rows, "test", layers=layers, threshold=choice.threshold)
    whole = sum(parameter.numel() for parameter in base.lm.model.parameters())
    return {
        "system": cell.name,
        "title": cell.system.title,
        "objective": cell.objective,
        **asdict(point),
        "epochs": trained.steps // -(-len(base.prepared.splits.forget) // base.recipe.train.batch_size),
        "gate_threshold": choice.threshold,
        **_numbers(report),
        "trained_parameters": trained.num_trained,
        "trained_share": trained.num_trained / whole,
        "steps": trained.steps,
        "cpu_seconds": trained.cpu_seconds,
    }


def _numbers(report: EvalReport) -> dict[str, float | None]:
    """What the table says of a report; None where a report does not have it."""
    names = {
        "forget_rouge": "forget/rouge_l_recall",
        "forget_rouge_unseen": FORGETTING,
        "forget_probability": "forget/probability",
        "forget_quality": "forget_quality",
        "utility": "model_utility",
        "utility_ratio": UTILITY,
        # the testbed's kept people are asked about under a name of their own
        "retain_probability": "retain/probability" if "retain/probability" in report else "neighbours/probability",
        "false_open_rate": "gate/false_open_rate",
    }
    return {key: report[name].value if name in report else None for key, name in names.items()}


def _references(base: QualityBase) -> list[dict[str, Any]]:
    """The rows of the base and of its retain-only twin, by the same report."""
    titles = {"base": "the base", "twin": "retain-only twin"}
    sets = base.sets("test")
    return [
        {
            "system": model,
            "title": titles[model],
            "objective": None,
            **_numbers(base.report(sets, base.rows(model, sets), "test")),
        }
        for model in base.known
    ]


def _identity(base: QualityBase, cell: _Cell, options: Options) -> str:
    """Digest of everything that decides a row."""
    decides = {
        "version": _VERSION,
        "recipe": base.recipe.model_dump(mode="json", exclude={"name", "output", "tracking", "cluster", "promotion"}),
        "data": base.prepared.request.data_digests,
        "models": [base.lm.info.digest, base.prepared.retain_only and Path(base.prepared.retain_only).name],
        "system": {key: str(value) for key, value in asdict(cell.system).items()},
        "objective": OBJECTIVES[cell.objective],
        "points": [asdict(point) for point in cell.points(options)],
        "validation_rows": _VALIDATION_ROWS,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def _line(record: Mapping[str, Any]) -> str:
    return (
        f"{record['title']}, {record['objective']}: forget ROUGE-L recall {record['forget_rouge_unseen']:.3f} in unseen wording, "
        f"utility {record['utility_ratio'] or 0:.3f} of the base's, at learning rate {record['learning_rate']:g}"
    )


def _workload(base: QualityBase, options: Options) -> dict[str, Any]:
    recipe: Recipe = base.recipe
    return {
        "data": options.data_kind,
        "records": {name: len(getattr(base.prepared.splits, name)) for name in ("forget", "retain", "holdout")},
        "base_parameters": sum(parameter.numel() for parameter in base.lm.model.parameters()),
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
        "edited_blocks": list(recipe.adapter.resolve_layers(base.lm.num_layers)),
        "chosen_by": f"utility ratio (at most 1) - forget ROUGE-L recall, on {_VALIDATION_ROWS} validation rows a set",
        "judged_on": "the test half",
        "retain_probability": "of the set `retain`, or of `neighbours` where there is none",
        "grids": {
            name: {objective: [asdict(p) for p in _Cell(name, objective).points(options)] for objective in OBJECTIVES}
            for name in SYSTEMS
        },
    }
