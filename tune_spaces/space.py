"""A search space: what Ray Tune varies around a recipe, and which gate thresholds are scored from each trained trial.

Dimensions are dotted paths of the recipe. A choice of lists is written as YAML text, because Optuna's categories have
to be scalars; :func:`apply_point` reads it back. What matters at inference only (the gate threshold) is no dimension:
every trial is scored at all thresholds, and none of them costs a training run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from ray import tune
from ray.tune.search.sample import Categorical, Domain

from grun.config import NoGateConfig, Recipe
from grun.config.base import field_names
from grun.errors import ConfigError, near_miss

__all__ = ["Space", "apply_point", "choice"]

_DECIDES_WHAT_IS_RUN = ("adapter.layers", "adapter.relative_depths", "objective.forget", "objective.retain")

_DECIDES_WHAT_IS_PREPARED = ("objective.invariance.path",)

# close to 1 the gate's logit tells more than its value: steps there are even in the logit
DEFAULT_THRESHOLDS = (0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998)


def choice(*values: object) -> Categorical:
    """One of the values; lists become YAML text."""
    scalars = (str, int, float, bool)
    return Categorical([v if isinstance(v, scalars) else yaml.safe_dump(v, default_flow_style=True).strip() for v in values])


@dataclass(frozen=True)
class Space:
    """A named search space."""

    name: str
    title: str
    """What it varies, in a line."""
    dimensions: Mapping[str, Domain] = field(default_factory=dict)
    """Sampler by dotted path of the recipe."""
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    """Gate thresholds at which every trained trial is scored."""

    @property
    def size(self) -> float:
        """Number of distinct trained points; infinite with a continuous dimension."""
        counts = [float(len(d.categories)) if isinstance(d, Categorical) else math.inf for d in self.dimensions.values()]
        return math.prod(counts)

    def grid(self) -> dict[str, Any]:
        """The whole of a finite space, as Ray Tune's grid search."""
        return {path: tune.grid_search(list(d.categories)) for path, d in self.dimensions.items() if isinstance(d, Categorical)}

    def variants(self, recipe: Recipe) -> list[Recipe]:
        """The recipe at every placement and with every objective of the space: what decides which rows and blocks are run."""
        deciding = {
            path: list(d.categories)
            for path, d in self.dimensions.items()
            if path.startswith(_DECIDES_WHAT_IS_RUN) and isinstance(d, Categorical)
        }
        return [apply_point(recipe, dict(zip(deciding, values, strict=True))) for values in product(*deciding.values())]

    def check(self, recipe: Recipe) -> None:
        """Refuse a space with a path that no recipe has, or that decides what is prepared once for all trials; and a recipe without gates.

        Raises:
            ConfigError: with the path and the near miss, or with the kind of gate.
        """
        if isinstance(recipe.adapter.gate, NoGateConfig):
            raise ConfigError(
                f"a sweep chooses among gates and their thresholds, got `adapter.gate.kind` {recipe.adapter.gate.kind!r} and space "
                f"`{self.name}`; name a gate, or train the one adapter with `train`"
            )
        for path in self.dimensions:
            if path in _DECIDES_WHAT_IS_PREPARED:
                raise ConfigError(
                    f"a space may vary only what is not prepared before it, got `{path}` in space `{self.name}`; set it in the recipe"
                )
            annotation: Any = Recipe
            walked: list[str] = []
            for part in path.split("."):
                names = field_names(annotation)
                if part not in names:
                    where = ".".join(walked) or "the recipe"
                    raise ConfigError(
                        f"a space may vary fields of the recipe only, got `{path}` in space `{self.name}`: {where} has no field "
                        f"`{part}`{near_miss(part, names)}; correct the path"
                    )
                annotation = _field(annotation, part)
                walked.append(part)
        for threshold in self.thresholds:
            apply_point(recipe, {"adapter.gate_threshold": threshold})


def _field(annotation: Any, name: str) -> Any:
    """The type of a field of a section, or of the first member of a union that has it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields[name].annotation
    return next(_field(arg, name) for arg in get_args(annotation) if name in field_names(arg))


def apply_point(recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
    """Return the recipe at a point of a space, validated again.

    Raises:
        ConfigError: the point is no valid recipe.
    """
    nested: dict[str, Any] = {}
    for path, value in point.items():
        *parents, leaf = path.split(".")
        section = nested
        for part in parents:
            section = section.setdefault(part, {})
        section[leaf] = yaml.safe_load(value) if isinstance(value, str) else value
    return recipe.replace(nested)
