"""The compared systems and objectives of `quality`: what each is, the points that are tried, and how one is trained.

GRUN and LoReFT train on a prefix cache and LoRA and full fine-tuning on whole passes, as each has to. All train on the same
rows in the same order and with the same terms; LoRA and full fine-tuning for a third of the epochs (published: 10 beside 40). Objective weights are the published ones
(arXiv:2502.17823), but for NPO with an adapter: its 100 is for 8B, and a small base does not survive it. As 0.1375, the
published weight of NPO without one, may likewise be wrong here, both weights are tried there.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from grun.compared import ChangedBase, full_fine_tuning, lora, train_changed
from grun.config import Recipe
from grun.interventions import Adapter
from grun.lm import CachedPass, PrefixCache
from grun.training import TorchEngine, build_task, fit
from pipelines.benchmarks.quality_base import QualityBase

__all__ = ["OBJECTIVES", "SYSTEMS", "Point", "System", "Trained", "train_point"]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "gd": {"forget": {"kind": "gd", "weight": 1.0}, "retain": {"kind": "ce", "weight": 2.0}},
    "npo": {"forget": {"kind": "npo", "weight": 1.0}, "retain": {"kind": "ce", "weight": 1.0}},
    "idk": {"forget": {"kind": "idk", "weight": 1.0}, "retain": {"kind": "ce", "weight": 1.0}},
}

_THRESHOLDS = (0.5, 0.9, 0.99, 0.999)

_FEWER_EPOCHS = 3
"""How many times fewer epochs a changed base trains for than an adapter."""


@dataclass(frozen=True)
class Point:
    """One point of a system's grid; the gate threshold is chosen after training."""

    learning_rate: float
    forget_weight: float
    """Weight of the forget term."""
    rank: int
    """Rank of LoReFT or LoRA; 0 for full fine-tuning."""


@dataclass(frozen=True)
class System:
    """What learns, and with which settings it is tried."""

    title: str
    change: Literal["adapter", "lora", "full"]
    learning_rates: tuple[float, ...]
    values: Mapping[str, Any]
    """Laid over the recipe."""
    ranks: tuple[int, ...]
    npo_weights: tuple[float, ...] = (1.0,)
    thresholds: tuple[float | None, ...] = (None,)
    """Gate thresholds that one training is scored at."""

    def points(self, objective: str, *, thin: bool = False) -> list[Point]:
        """The grid for an objective.

        Args:
            thin: the two rates in the middle, the last weight and the last rank alone.
        """
        weights = self.npo_weights if objective == "npo" else (OBJECTIVES[objective]["forget"]["weight"],)
        rates, ranks = self.learning_rates, self.ranks
        if thin:
            rates, weights, ranks = rates[1:3], weights[-1:], ranks[-1:]
        return [Point(rate, weight, rank) for weight in weights for rank in ranks for rate in rates]

    def recipe(self, recipe: Recipe, objective: str, point: Point, steps_per_epoch: int) -> Recipe:
        """The recipe of a point. What was published with a warm-up of an epoch has one."""
        terms = OBJECTIVES[objective]
        values = recipe.replace({"objective": {**terms, "forget": {**terms["forget"], "weight": point.forget_weight}}})
        train: dict[str, Any] = {"learning_rate": point.learning_rate}
        if self.change != "adapter":
            train |= {"epochs": max(1, recipe.train.epochs // _FEWER_EPOCHS), "warmup_steps": steps_per_epoch}
        adapter = {"rank": point.rank} if self.change == "adapter" else {}
        return values.replace(
            {
                **self.values,
                "train": {**self.values.get("train", {}), **train},
                "adapter": {**self.values.get("adapter", {}), **adapter},
            }
        )


SYSTEMS: dict[str, System] = {
    "grun": System("GRUN", "adapter", (5e-4, 1e-3, 2e-3), {}, (4, 16), thresholds=_THRESHOLDS),
    "loreft": System("LoReFT, no gate", "adapter", (1e-3, 3e-3, 1e-2), {"adapter": {"gate": {"kind": "none"}}}, (4, 16)),
    "lora": System("LoRA", "lora", (1e-3, 2e-3, 4e-3, 1e-2), {"train": {"weight_decay": 0.01}}, (4,), (0.1375, 1.0)),
    "full": System("full fine-tuning", "full", (1e-4, 2e-4, 4e-4, 1e-3), {"train": {"weight_decay": 0.01}}, (0,), (0.1375, 1.0)),
}
"""Learning rates around what a model of this size takes; with those published for 8B (LoRA 1e-4, full 1e-5) it forgets nothing."""


@dataclass(frozen=True)
class Trained:
    """What a training left behind."""

    result: Adapter | ChangedBase
    num_trained: int
    """How many numbers learnt."""
    steps: int
    cpu_seconds: float
    """Of training alone, over all threads of this process."""


def train_point(base: QualityBase, system: System, recipe: Recipe, cache: PrefixCache | None) -> Trained:
    """Train one point from the start.

    Args:
        recipe: from :meth:`System.recipe`.
        cache: of all training rows; read by adapters alone.

    Raises:
        TrainingError: the loss is not finite.
    """
    prepared = base.prepared
    task = build_task(recipe, prepared.splits, prepared.request, base.lm, base.encoder)
    if system.change == "adapter":
        assert cache is not None
        adapter = task.adapter
        engine = TorchEngine(CachedPass(base.lm.above(adapter.layers[0]), cache))
        start = time.process_time()
        steps = fit(engine, adapter, task.objective, task.sampler, task.optimizer, read_layer=task.read_layer).steps
        seconds = time.process_time() - start
        return Trained(adapter.eval(), sum(p.numel() for p in adapter.parameters()), steps, seconds)
    changed = full_fine_tuning(base.lm) if system.change == "full" else lora(base.lm, seed=recipe.seed)
    start = time.process_time()
    steps = train_changed(changed, task, recipe.train, seed=recipe.seed)
    return Trained(changed, changed.num_trained, steps, time.process_time() - start)
