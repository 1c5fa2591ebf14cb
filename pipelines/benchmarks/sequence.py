"""`sequence`: six requests one after another, and what keeps their gates apart.

Three ways, on the same base, rows and settings, in this process on one thread:
- *others*: what other requests forget is among the rows that a request's gate must stay closed on (what `request.py` does);
- *neither*: what earlier requests forget is left out of later ones' training;
- *recalibrated*: as *neither*, but at every step all thresholds are raised anew, on the ordinary prompts and on the training
  questions of the other requests together.

After each step the stack is judged on every request so far, in wordings that training never saw.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grun.config import Recipe, SumConfig, TestbedData
from grun.data.prompts import PromptEncoder
from grun.data.records import Record, read_jsonl
from grun.data.sequence import request_splits, without
from grun.data.splits import Splits
from grun.data.testbed import people_to_forget
from grun.evaluation.calibration import OrdinaryGates, holdout_halves
from grun.evaluation.evaluate import Rows, Scorer
from grun.evaluation.gate_separation import clopper_pearson_upper
from grun.evaluation.sequence_figure import SequenceStep, sequence_figure
from grun.evaluation.sets import EvalPrompt, EvalSet
from grun.evaluation.stack_report import growths
from grun.evaluation.stack_scoring import BaseRows, StackScorer
from grun.interventions import Adapter, AdapterStack, StackMember
from grun.lm import CachedPass, FrozenLM, PrefixCache
from grun.lm.cache_build import write_shard
from grun.training import TorchEngine, build_task, fit
from pipelines.benchmarks.harness import Options, Report, Row, plain
from pipelines.benchmarks.quality_base import quality_recipe, teach_here
from pipelines.caching import CachePlan, link_shards, plan_cache
from pipelines.console import note, progress
from pipelines.loaded import loaded_base
from pipelines.prepared import Prepared
from pipelines.sequencing.data import common_rows, ledger_recipe, universe
from pipelines.sequencing.judging import StackSets, mean_recall, utility_ratio

__all__ = ["run"]

_NUM_REQUESTS, _TOFU_ROWS = 6, 40
WAYS = ("others", "neither", "recalibrated")


@dataclass(frozen=True)
class _Bench:
    """What all requests share."""

    recipe: Recipe
    shared: Prepared
    requests: tuple[tuple[Record, ...], ...]
    lm: FrozenLM
    scorer: Scorer
    sets: StackSets
    calibration: EvalSet
    base_rows: BaseRows

    @classmethod
    def open(cls, options: Options) -> "_Bench":
        """Teach the base where it is not there, and score it once."""
        recipe = ledger_recipe(quality_recipe(options))
        shared = universe(recipe)
        teach_here(recipe, shared)
        requests = _requests(recipe, shared.splits)
        lm = loaded_base(recipe, shared.base)
        encoder = PromptEncoder(lm.tokenizer, recipe.prompt, context=lm.context)
        scorer = Scorer(lm, encoder, recipe.evaluation.batch_size, recipe.evaluation.max_new_tokens)
        ordinary = without(shared.splits, [record for rows in requests for record in rows])
        sets = StackSets.of(ordinary, {_name(index): rows for index, rows in enumerate(requests)})
        note("scoring the base")
        rows = [row for evaluated in sets.answered for row in scorer.score_prompts(evaluated.name, evaluated.prompts)]
        base_rows: BaseRows = {(row.set_name, row.digest, row.prompt): row for row in rows}
        calibration, _check = holdout_halves(ordinary)
        return cls(recipe, shared, requests, lm, scorer, sets, calibration, base_rows)

    def splits(self, index: int, *, others: bool) -> Splits:
        """What a request trains on, with the rows of the others or without those of earlier ones."""
        elsewhere = [rows for place, rows in enumerate(self.requests) if place != index]
        splits = request_splits(self.shared.splits, self.requests[index], elsewhere)
        if others:
            return splits
        earlier = {record.digest for rows in self.requests[:index] for record in rows}
        return replace(splits, retain=tuple(record for record in splits.retain if record.digest not in earlier))


def _name(index: int) -> str:
    return f"r{index + 1}"


def _requests(recipe: Recipe, splits: Splits) -> tuple[tuple[Record, ...], ...]:
    """Six people of the testbed, or six times forty records of TOFU: those to forget, and the next ones."""
    if isinstance(recipe.data, TestbedData):
        return people_to_forget(recipe.data)[:_NUM_REQUESTS]
    path = Path(recipe.data.path)
    known = {record.digest for record in splits.forget}
    more = [record for record in read_jsonl(path / "forget10_perturbed.json") if record.digest not in known]
    rows = (*splits.forget, *more)
    return tuple(rows[start : start + _TOFU_ROWS] for start in range(0, _NUM_REQUESTS * _TOFU_ROWS, _TOFU_ROWS))


@dataclass(frozen=True)
class _Trained:
    """The adapter of a request, and the CPU seconds that it took."""

    adapter: Adapter
    cache: float
    training: float
    calibration: float
    ordinary: OrdinaryGates


def _train(bench: _Bench, index: int, common: CachePlan, work: Path, *, others: bool) -> _Trained:
    """Train one request on a cache that takes over what is common."""
    recipe, start = bench.recipe, time.process_time()
    prepared = replace(bench.shared, splits=bench.splits(index, others=others))
    plan = plan_cache(recipe, prepared, [recipe], common=common_rows(bench.shared))
    cache = _build(bench, plan, work, linked=common)
    cached = time.process_time()
    task = build_task(recipe, prepared.splits, prepared.request, bench.lm, bench.scorer.encoder)
    engine = TorchEngine(CachedPass(bench.lm.above(task.adapter.layers[0]), cache))
    fit(engine, task.adapter, task.objective, task.sampler, task.optimizer, read_layer=task.read_layer)
    trained, adapter = time.process_time(), task.adapter.eval()
    ordinary = OrdinaryGates.of(bench.calibration, bench.scorer.closed_gate_values(bench.calibration.prompts, adapter))
    return _Trained(adapter, cached - start, trained - cached, time.process_time() - trained, ordinary)


def _build(bench: _Bench, plan: CachePlan, work: Path, *, linked: CachePlan | None = None) -> PrefixCache:
    folder = work / plan.spec.digest
    folder.mkdir(exist_ok=True)
    count, shards = plan.shards(bench.recipe.cache.sequences_per_shard)
    if linked is not None:
        link_shards(work / linked.spec.digest, folder, count)
    for number, rows in enumerate(shards):
        write_shard(bench.lm, plan.spec, rows, folder, number, batch_size=bench.recipe.cache.batch_size)
    return PrefixCache.open_shards(folder, plan.spec)


def _thresholds(bench: _Bench, way: str, trained: Sequence[_Trained]) -> list[float]:
    """The gate thresholds of a stack's members."""
    config, asked = bench.recipe.calibration, bench.recipe.adapter.gate_threshold
    assert asked is not None
    thresholds = []
    for index, member in enumerate(trained):
        ordinary = member.ordinary
        if way == "recalibrated":
            others = tuple(
                EvalPrompt(r, "question") for place in range(len(trained)) if place != index for r in bench.requests[place]
            )
            prompts = (*bench.calibration.prompts, *others)
            values = bench.scorer.closed_gate_values(prompts, member.adapter)
            ordinary = OrdinaryGates.of(EvalSet("joint", "holdout", prompts), values)
        thresholds.append(ordinary.raised(asked, alpha=config.alpha, delta=config.delta))
    return thresholds


def _judge(bench: _Bench, way: str, trained: Sequence[_Trained]) -> dict[str, Any]:
    """Judge the stack of the first requests."""
    thresholds = _thresholds(bench, way, trained)
    members = [StackMember(_name(n), t.adapter, bound) for n, (t, bound) in enumerate(zip(trained, thresholds, strict=True))]
    scored = StackScorer(bench.scorer, AdapterStack(members, SumConfig()), bench.base_rows)
    asked = {member.request_id: bench.sets.requests[member.request_id] for member in members}
    opened = {s.name: scored.opened(s) for s in (*asked.values(), *bench.sets.utility, bench.sets.ordinary)}
    rows: Rows = {s.name: scored.rows(s, opened[s.name]) for s in (*asked.values(), *bench.sets.utility)}
    base_rows: Rows = {s.name: scored.base(s) for s in bench.sets.utility}
    ordinary: NDArray[np.bool_] = opened[bench.sets.ordinary.name].numpy()
    return {
        "way": way,
        "requests": len(members),
        "recall": {name: mean_recall(rows[s.name]) for name, s in asked.items()},
        "own_open_rate": {name: float(opened[s.name][:, place].float().mean()) for place, (name, s) in enumerate(asked.items())},
        "utility_ratio": utility_ratio(bench.sets.utility, base_rows, rows, bench.lm.info.digest),
        "ordinary_open": int(ordinary.any(axis=1).sum()),
        "ordinary": len(ordinary),
        "growth": growths(ordinary.tolist()),
        "thresholds": thresholds,
        "cpu_seconds": {
            "cache": trained[-1].cache,
            "training": trained[-1].training,
            "calibration": trained[-1].calibration,
        },
    }


def run(options: Options) -> Report:
    """Train six requests with the others' rows and without, and judge each stack on the way."""
    bench = _Bench.open(options)
    options.work.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    num = len(bench.requests)
    with tempfile.TemporaryDirectory(dir=options.work) as folder, progress("requests in sequence", 5 * num) as advance:
        work = Path(folder)
        start = time.process_time()
        common = plan_cache(bench.recipe, common_rows(bench.shared), [bench.recipe])
        _build(bench, common, work)
        common_seconds = time.process_time() - start
        trained: dict[bool, list[_Trained]] = {True: [], False: []}
        for others in (True, False):
            for index in range(num):
                trained[others].append(_train(bench, index, common, work, others=others))
                advance(1)
        for way in WAYS:
            for index in range(num):
                records.append(_judge(bench, way, trained[way == "others"][: index + 1]))
                note(_line(records[-1]))
                advance(1)
    name = "sequence" if options.data_kind == "testbed" else f"sequence_{options.data_kind}"
    chosen = [record for record in records if record["way"] == "others"]
    workload = {
        "data": options.data_kind,
        "requests": [len(rows) for rows in bench.requests],
        "epochs": bench.recipe.train.epochs,
        "common_cache_cpu_seconds": common_seconds,
    }
    return Report(
        _rows(records, common_seconds), _figure(bench, chosen), workload, name=name, records=records, table=_table(records)
    )


def _whole(record: Mapping[str, Any]) -> float:
    return float(sum(record["cpu_seconds"].values()))


def _rows(records: Sequence[Mapping[str, Any]], common_seconds: float) -> list[Row]:
    costs = [_whole(record) for record in records if record["way"] == "others"]
    ends = {record["way"]: record for record in records}  # of each way the last: all six requests
    return [
        plain("sequence.common_cache", common_seconds, "s CPU"),
        Row(
            "sequence.request_cpu",
            costs[-1],
            "s CPU",
            costs[0],
            costs[-1] / costs[0],
            min(costs) / costs[0],
            max(costs) / costs[0],
        ),
        *(plain(f"sequence.{way}.recall_most", max(ends[way]["recall"].values()), "ROUGE-L recall") for way in WAYS),
        *(plain(f"sequence.{way}.ordinary_open", ends[way]["ordinary_open"] / ends[way]["ordinary"], "share") for way in WAYS),
        *(plain(f"sequence.{way}.utility_ratio", ends[way]["utility_ratio"], "share of the base's") for way in WAYS),
    ]


def _figure(bench: _Bench, records: Sequence[Mapping[str, Any]]) -> Any:
    policy = bench.recipe.promotion
    steps = [
        SequenceStep(
            f"+{_name(record['requests'] - 1)}",
            record["recall"],
            record["utility_ratio"],
            record["ordinary_open"] / record["ordinary"],
            clopper_pearson_upper(record["ordinary_open"], record["ordinary"]),
        )
        for record in records
    ]
    return sequence_figure(
        steps, max_forget=policy.max_forget_rouge, min_utility=policy.min_utility_ratio, max_false_open=policy.max_false_open_rate
    )


def _line(record: Mapping[str, Any]) -> str:
    recalls = " ".join(f"{value:.3f}" for value in record["recall"].values())
    return (
        f"{record['way']:<12} {record['requests']} requests: recall {recalls}; utility {record['utility_ratio']:.4f}; "
        f"{record['ordinary_open']} of {record['ordinary']} ordinary prompts open; {_whole(record):.1f} s CPU"
    )


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{_line(record)}\n" for record in records)
