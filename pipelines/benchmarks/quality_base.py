"""What all rows of `quality` share: the request, the base and its twin with their own scores, and the prefix cache."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grun.config import Recipe, read_recipe_file
from grun.data.prompts import PromptEncoder
from grun.evaluation.evaluate import AdapterScorer, Rows, Scorer
from grun.evaluation.report import EvalReport
from grun.evaluation.scores import RowScore, read_rows
from grun.evaluation.sets import EvalSet, evaluation_sets
from grun.evaluation.summary import RETAIN_ONLY_ROLES, ScoredSet, summarise
from grun.interventions import Adapter
from grun.lm import FrozenLM, PrefixCache
from grun.lm.cache_build import cut_into_shards, write_shard
from pipelines.benchmarks.harness import Options
from pipelines.caching import plan_cache
from pipelines.console import note
from pipelines.loaded import loaded_base
from pipelines.prepare import check, teach
from pipelines.prepared import Prepared, write_prepared
from pipelines.scoring import reference_path, score_reference

__all__ = ["QualityBase", "quality_recipe", "teach_here"]

_TOFU = Path(__file__).parents[1] / "recipes" / "tofu_small_forget05_cpu.yaml"

_TINY: dict[str, Any] = {
    "model": {"taught": {"hidden_size": 64, "num_layers": 4, "num_heads": 2, "vocab_size": 600, "context": 256, "epochs": 25}},
    "train": {"epochs": 1},
    "evaluation": {"max_new_tokens": 6},
}


def quality_recipe(options: Options) -> Recipe:
    """The recipe of a data set: the default one, or that of small-model TOFU, one process in either case.

    Its models and references are those that `prepare` makes with the same recipe; at toy size, of the benchmark alone.
    """
    recipe = Recipe.parse({} if options.data_kind == "testbed" else read_recipe_file(_TOFU))
    one_process: dict[str, Any] = {"train": {"num_workers": 1, "engine": "torch"}}
    if options.data_kind == "tofu":
        one_process["data"] = {"path": str(options.data)}
    recipe = recipe.replace(one_process)
    if not options.tiny:
        return recipe
    few = {} if options.data_kind == "tofu" else {"data": {"num_people": 12, "num_forget": 2}}
    return recipe.replace({**_TINY, **few, "output": str(options.work / "quality")})


def teach_here(recipe: Recipe, prepared: Prepared) -> None:
    """Teach the models that are not there yet, in this process."""
    recipe.output.mkdir(parents=True, exist_ok=True)
    progress = recipe.output.absolute() / ".progress-benchmark"
    for lesson in prepared.lessons:
        if not lesson.is_done:
            note(f"teaching the {lesson.title}: minutes, once")
            teach(recipe, prepared.vocabulary, lesson, progress)
    progress.unlink(missing_ok=True)


@dataclass(frozen=True)
class QualityBase:
    """A request and what answers it without having unlearned anything."""

    recipe: Recipe
    prepared: Prepared
    lm: FrozenLM
    encoder: PromptEncoder
    known: Mapping[str, Mapping[tuple[str, str, str], RowScore]]
    """By `base` and `twin`, every row of every set: by set, record and wording."""

    @classmethod
    def open(cls, recipe: Recipe) -> "QualityBase":
        """Teach and score what is not there yet, in this process.

        Raises:
            GrunError: what is wrong with data, models or the output folder.
        """
        prepared = check(recipe)
        teach_here(recipe, prepared)
        write_prepared(prepared)
        known: dict[str, dict[tuple[str, str, str], RowScore]] = {}
        for title, model in (("base", prepared.base), ("twin", prepared.retain_only)):
            if model is None:
                continue
            if not reference_path(recipe, prepared.folder, model).is_file():
                note(f"scoring the {'base' if title == 'base' else 'retain-only twin'} on all rows")
            rows = read_rows(score_reference(recipe, prepared.folder, model))
            known[title] = {(row.set_name, row.digest, row.prompt): row for row in rows}
        lm = loaded_base(recipe, prepared.base)
        return cls(recipe, prepared, lm, PromptEncoder(lm.tokenizer, recipe.prompt, context=lm.context), known)

    def rows(self, model: str, sets: Sequence[EvalSet]) -> Rows:
        """What base or twin said to some sets."""
        known = self.known[model]
        return {s.name: tuple(known[s.name, p.record.digest, p.wording] for p in s.prompts) for s in sets}

    def sets(self, part: Literal["validation", "test"], *, max_rows: int | None = None) -> tuple[EvalSet, ...]:
        """The sets of one half; what serves membership inference alone is left out."""
        sets = evaluation_sets(self.prepared.splits, part=part, max_rows=max_rows)
        return tuple(s for s in sets if s.role != "nonmember")

    def score(
        self, system: Adapter | FrozenLM, sets: Sequence[EvalSet], thresholds: Sequence[float | None]
    ) -> dict[float | None, Rows]:
        """What an adapter says to some sets at gate thresholds, or a base that was changed (at None)."""
        evaluation = self.recipe.evaluation
        lm = self.lm if isinstance(system, Adapter) else system
        scorer = Scorer(lm, self.encoder, evaluation.batch_size, evaluation.max_new_tokens)
        if not isinstance(system, Adapter):
            return {None: scorer.score(sets)}
        whole = AdapterScorer(scorer, system, sets, self.rows("base", sets))
        return {threshold: whole.rows(threshold) for threshold in thresholds}

    def report(
        self,
        sets: Sequence[EvalSet],
        rows: Rows,
        part: Literal["validation", "test"],
        *,
        layers: Sequence[int] = (),
        threshold: float | None = None,
    ) -> EvalReport:
        """The same metrics for whatever said these rows."""
        compared = [s for s in sets if s.role in RETAIN_ONLY_ROLES]
        return summarise(
            [ScoredSet(s.name, s.role, s.digest, rows[s.name]) for s in sets],
            base_digest=self.lm.info.digest,
            base_rows=self.rows("base", sets),
            retain_only_rows=self.rows("twin", compared) if "twin" in self.known and compared else None,
            layers=layers,
            threshold=threshold,
            part=part,
        )

    def build_cache(self, variants: Sequence[Recipe], folder: Path) -> tuple[PrefixCache, float]:
        """Build the cache that serves all variants, and return it with the CPU seconds that it took."""
        plan = plan_cache(self.recipe, self.prepared, variants)
        start = time.process_time()
        for number, rows in enumerate(cut_into_shards(plan.examples, self.recipe.cache.sequences_per_shard)):
            write_shard(self.lm, plan.spec, rows, folder, number, batch_size=self.recipe.cache.batch_size)
        return PrefixCache.open_shards(folder, plan.spec), time.process_time() - start
