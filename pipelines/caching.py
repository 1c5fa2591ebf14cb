"""The prefix cache of a run: planned from a recipe and its variants, built once by tasks on the cluster, then shared.

    <output>/cache/<digest>/    see :mod:`grun.lm.prefix_cache`, and `records.json`, the digests of the records that it was made
                                from, by which a purge finds it; beside it locks, see :mod:`pipelines.cache_locks`

With `cache.uri` it is built and kept there instead (:mod:`pipelines.shared_caches`), and every node reads a copy of its own.

All that training, probes and evaluation will run is known beforehand, so the cache holds exactly that.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grun.config import Recipe
from grun.data.prompts import Example, PromptEncoder
from grun.data.splits import Splits
from grun.errors import CacheError
from grun.evaluation.sets import evaluation_sets
from grun.interventions import check_fits
from grun.lm import PrefixCache, digest_weights, load_tokenizer, resolve_folder
from grun.lm.cache_build import cache_bytes, cut_into_shards
from grun.lm.frozen import BaseShape, context_of, load_config, read_shape
from grun.lm.prefix_cache import CACHE_FILE, CacheSpec, CacheState, check_spec, make_spec, read_state, sequence_digest, shard_path
from grun.objectives import Needs, build_objective, read_layer
from grun.training import training_rows
from grun.writing import write_text
from pipelines.cache_locks import building, reading
from pipelines.cache_tasks import build_shard, finish_cache
from pipelines.console import note
from pipelines.prepared import Prepared
from pipelines.shared_caches import RECORDS_FILE, SharedCaches, rows_digest
from pipelines.tasks import HelperTask, run_tasks

__all__ = [
    "RECORDS_FILE",
    "CachePlan",
    "cache_root",
    "check_unchanged",
    "ensure_cache",
    "link_shards",
    "plan_cache",
    "reading_cache",
]

_PROBE_ROWS = 8

_REMEDY = (
    "lower `cache.batch_size` or `cache.sequences_per_shard`, or raise `evaluation.num_cpus`, so that fewer tasks run at a time"
)
"""What to do where building does not find the memory that it takes."""


@dataclass(frozen=True)
class CachePlan:
    """A cache that is to be there."""

    folder: Path
    """Where it will be read: in the output folder, or this node's copy of what is at `cache.uri`."""
    spec: CacheSpec
    examples: tuple[Example, ...]
    num_bytes: int
    """Size of what it adds to the disk, known before it is built."""
    common: "CachePlan | None" = None
    """A cache whose files are a part of this one: they are built once and linked into each that has it."""

    def shards(self, size: int) -> tuple[int, list[list[Example]]]:
        """Divide the rows into files; returns how many of them are those of the common cache, which come first, and all of them."""
        if self.common is None:
            return 0, cut_into_shards(self.examples, size)
        shared = cut_into_shards(self.common.examples, size)
        own = cut_into_shards(_beside(self.examples, self.common.examples), size)
        return len(shared), [*shared, *(rows for rows in own if rows)]


def cache_root(recipe: Recipe) -> Path:
    """Where the caches of an output folder are, and the locks of those that are built from it."""
    return recipe.output.absolute() / "cache"


def plan_cache(
    recipe: Recipe,
    prepared: Prepared,
    variants: Sequence[Recipe],
    *,
    evaluates: bool = False,
    common: Prepared | None = None,
) -> CachePlan:
    """Describe the one cache that serves a recipe in all its variants.

    Args:
        variants: the recipe at every placement and objective that may be tried.
        evaluates: whether adapters are scored on the validation rows too, as in a sweep; else those of the probe are enough.
        common: data whose rows other requests need as well; they are in the cache whether this one needs all of them or not.
    """
    base = resolve_folder(prepared.base, recipe.model.revision)
    shape = read_shape(base)
    shared = None if common is None else plan_cache(recipe, common, variants)
    examples = _examples(recipe, prepared.splits, base, variants, evaluates=evaluates)
    if shared is not None:
        examples = [*shared.examples, *_beside(examples, shared.examples)]
    cuts = [min(check_fits(variant.adapter, hidden_size=shape.hidden_size, num_layers=shape.num_layers)) for variant in variants]
    spec = make_spec(
        examples,
        base_digest=digest_weights(base),
        dtype=recipe.model.dtype,
        template=recipe.prompt.model_dump(mode="json"),
        cuts=cuts,
        reference_layers=[layer for variant in variants for layer in _reference_layers(variant, shape)],
        num_layers=shape.num_layers,
    )
    size = cache_bytes(spec, key_value_size=shape.key_value_size, hidden_size=shape.hidden_size)
    if shared is not None:
        size -= shared.num_bytes
    elsewhere = SharedCaches.of(recipe)
    folder = cache_root(recipe) / spec.digest if elsewhere is None else elsewhere.folder(spec.digest)
    return CachePlan(folder, spec, tuple(examples), size, shared)


def _beside(examples: Iterable[Example], others: Iterable[Example]) -> list[Example]:
    """Those of some rows that are not among others."""
    known = {sequence_digest(example) for example in others}
    return [example for example in examples if sequence_digest(example) not in known]


def _examples(recipe: Recipe, splits: Splits, base: Path, variants: Sequence[Recipe], *, evaluates: bool) -> list[Example]:
    """Every prompt with answer that will be run: training rows of all variants, the probe's, and evaluation rows with all answers."""
    encoder = PromptEncoder(load_tokenizer(base, recipe.model.pad_token), recipe.prompt, context=context_of(load_config(base)))
    # variants of a recipe share most rows; the encoder gives equal rows as one
    trained = dict.fromkeys(row for variant in variants for row in training_rows(variant, splits, encoder))
    return [
        *trained,
        *(
            prompt.encode(encoder, answer=answer)
            for evaluated in evaluation_sets(splits, part="validation", max_rows=None if evaluates else recipe.train.probe_rows)
            for prompt in evaluated.prompts
            for answer in (prompt.answers if evaluates else (None,))
        ),
    ]


def _reference_layers(recipe: Recipe, shape: BaseShape) -> list[int]:
    """Blocks whose unedited output the objective reads: the last one carries the logits."""
    objective = build_objective(recipe.objective)
    needs = objective.needs_forget | objective.needs_retain
    layers = [shape.num_layers - 1] if Needs.REFERENCE_LOGITS in needs else []
    if Needs.REFERENCE_HIDDEN in needs:
        edited = check_fits(recipe.adapter, hidden_size=shape.hidden_size, num_layers=shape.num_layers)
        layer = read_layer(recipe.objective, edited, num_layers=shape.num_layers)
        assert layer is not None
        layers.append(layer)
    return layers


def ensure_cache(
    recipe: Recipe,
    prepared: Prepared,
    variants: Sequence[Recipe],
    *,
    evaluates: bool = False,
    common: Prepared | None = None,
) -> Path | None:
    """Return the cache of a recipe and its variants, built if need be. Needs a connected cluster.

    Args:
        variants: as for :func:`plan_cache`.
        evaluates: as for :func:`plan_cache`.
        common: as for :func:`plan_cache`.

    Returns:
        None where the whole base has to be run: the cache is off, or cannot be used and `cache.mode` is `auto`. With `cache.uri`,
        the folder of a copy that a process fetches before it reads (:func:`pipelines.shared_caches.at_hand`).

    Raises:
        CacheError: a cache that is there is damaged or unfinished; or there can be none and `cache.mode` is `require`.
        StorageError: what is at `cache.uri` cannot be reached, or is damaged.
    """
    if recipe.cache.mode == "off":
        return None
    plan = plan_cache(recipe, prepared, variants, evaluates=evaluates, common=common)
    parts = [part for part in (plan.common, plan) if part is not None]
    try:
        for part in parts:
            _ensure(recipe, prepared, part)
    except _UnusableError as error:
        if recipe.cache.mode == "require":
            raise CacheError(str(error)) from None
        note(f"no prefix cache, every step runs the whole base: {error}")
        return None
    return plan.folder


@contextmanager
def reading_cache(
    recipe: Recipe,
    prepared: Prepared,
    variants: Sequence[Recipe],
    *,
    evaluates: bool = False,
    common: Prepared | None = None,
) -> Iterator[Path | None]:
    """As :func:`ensure_cache`, and nobody prunes or purges it for the length of the `with` block."""
    while True:
        cache = ensure_cache(recipe, prepared, variants, evaluates=evaluates, common=common)
        with nullcontext() if cache is None else reading(cache_root(recipe) / cache.name):
            # between the two lines above it may have been pruned
            if cache is None or recipe.cache.uri is not None or (cache / CACHE_FILE).is_file():
                yield cache
                return


def check_unchanged(recipe: Recipe, cache: Path | None, trained: Path) -> None:
    """Refuse what was trained from a cache that is no longer as it was when it was opened, and every byte of it was read.

    A copy of what is at `cache.uri` was checked when it was made, on the node that reads it.

    Args:
        trained: folder of the run or sweep.

    Raises:
        CacheError: with the file, and what to delete.
    """
    if cache is None or recipe.cache.uri is not None:
        return
    try:
        PrefixCache.open(cache)
    except CacheError as error:
        raise CacheError(
            f"{error}. It was whole when {str(trained)!r} began to train from it, so nobody knows since when it is not: delete that too, and "
            "give the same command again"
        ) from None


class _UnusableError(Exception):
    """There can be no cache."""


def _ensure(recipe: Recipe, prepared: Prepared, plan: CachePlan) -> None:
    """Build a cache where it is not there, and check it."""
    shared = SharedCaches.of(recipe)
    cache_root(recipe).mkdir(parents=True, exist_ok=True)
    with building(cache_root(recipe) / plan.spec.digest):
        try:
            if not _is_there(plan, shared):
                _check_size(recipe, plan)
                _build(recipe, prepared, plan, shared)
            state = read_state(plan.folder) if shared is None else shared.state(plan.spec.digest)
            assert state is not None
            _check_probe(state)
        except CacheError as error:
            raise _UnusableError(error) from None
        # a damaged cache stops the run whatever the mode: nothing is computed again behind anybody's back
        if shared is None:
            PrefixCache.open(plan.folder, plan.spec)
            (plan.folder / CACHE_FILE).touch()
        else:  # every node checks what it copies
            check_spec(state.spec, plan.spec, shared.storage.at(plan.spec.digest))
            shared.touch(plan.spec.digest)


def _is_there(plan: CachePlan, shared: SharedCaches | None) -> bool:
    if shared is None:
        return (plan.folder / CACHE_FILE).is_file()
    return shared.state(plan.spec.digest) is not None


def _check_size(recipe: Recipe, plan: CachePlan) -> None:
    limits = [(recipe.cache.max_gb * 1e9, "`cache.max_gb`")]
    if recipe.cache.uri is None:
        limits.append((float(shutil.disk_usage(plan.folder.parent).free), "the free space of its disk"))
    for limit, what in limits:
        if plan.num_bytes > limit:
            raise CacheError(
                f"a prefix cache must fit {what}, {limit / 1e9:.3g} GB, got {plan.num_bytes / 1e9:.3g} GB for {plan.spec.num_sequences} "
                "sequences; raise the limit, free space, or edit deeper blocks"
            )


def _check_probe(state: CacheState) -> None:
    if not state.probe.agrees(state.spec.dtype):
        raise CacheError(
            f"cached and full passes must give the same gradients, got a relative difference of {state.probe.gradient_rel_error:.2g} on the "
            "probe batch; this architecture cannot be fed from a cache: set `cache.mode: off`"
        )


def _build(recipe: Recipe, prepared: Prepared, plan: CachePlan, shared: SharedCaches | None) -> None:
    """Compute the shards in tasks beside each other, compare a probe batch both ways, and declare the cache finished."""
    num_linked, shards = plan.shards(recipe.cache.sequences_per_shard)
    _begin(plan, shared, shards[:num_linked])
    arguments = {"recipe": recipe, "base": prepared.base, "folder": plan.folder, "spec": plan.spec}
    new = list(enumerate(shards))[num_linked:]
    title = f"building the prefix cache, {plan.num_bytes / 1e6:.0f} MB in {len(new)} file(s)"
    run_tasks(
        recipe,
        [HelperTask(title, build_shard, {**arguments, "number": n, "examples": rows}, remedy=_REMEDY) for n, rows in new],
        shared=recipe.output.absolute(),
        title=title,
    )
    probe = plan.examples[:: max(1, len(plan.examples) // _PROBE_ROWS)][:_PROBE_ROWS]
    rows = [rows_digest(examples) for examples in shards]
    task = HelperTask(
        "comparing cached and full passes", finish_cache, {**arguments, "probe": probe, "rows": rows}, remedy=_REMEDY
    )
    run_tasks(recipe, [task], shared=recipe.output.absolute())
    if shared is None:
        _clear_scratch(plan.folder)


def _clear_scratch(folder: Path) -> None:
    """Remove what tasks that were killed while they wrote a file have left; whoever builds in a folder has its lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _begin(plan: CachePlan, shared: SharedCaches | None, common: Sequence[Sequence[Example]]) -> None:
    """Write down what a cache is made from, as a build may stop anywhere, and take over the shards of the common one."""
    digests = sorted({example.digest for example in plan.examples})
    if shared is None:
        plan.folder.mkdir(mode=0o700, exist_ok=True)  # it holds what gives the records away
        for scratch in plan.folder.glob(".*.tmp"):  # of builders that died; nobody else builds under this lock
            scratch.unlink(missing_ok=True)
        write_text(plan.folder / RECORDS_FILE, json.dumps(digests))
        if plan.common is not None:
            link_shards(plan.common.folder, plan.folder, len(common))
        return
    shared.begin(plan.spec.digest, digests)
    if plan.common is not None:
        shared.take_over(plan.common.spec.digest, plan.spec.digest, enumerate(map(rows_digest, common)))


def link_shards(source: Path, target: Path, count: int) -> None:
    """Take over the first files of a finished cache without copying them, where the disk can; each index after its file."""
    for path in map(partial(shard_path, source), range(count)):
        for file in (path, path.with_suffix(".json")):
            (target / file.name).unlink(missing_ok=True)
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copyfile(file, target / file.name)
