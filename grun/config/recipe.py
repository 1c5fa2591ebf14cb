"""A recipe: a complete run. Recipe files, the command line, the environment and Ray workers all speak this schema."""

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from grun.config.adapter import AdapterConfig
from grun.config.base import NAME_PATTERN, Config, explain
from grun.config.cache import CacheConfig
from grun.config.calibration import CalibrationConfig
from grun.config.cluster import ClusterConfig
from grun.config.data import DataConfig, PromptConfig, TestbedData
from grun.config.evaluation import EvaluationConfig, PromotionConfig
from grun.config.ledger import LedgerConfig
from grun.config.model import ModelConfig
from grun.config.objective import ObjectiveConfig
from grun.config.serving import ServingConfig
from grun.config.sweep import SweepConfig
from grun.config.tracking import TrackingConfig
from grun.config.train import TrainConfig
from grun.errors import ConfigError
from grun.reading import MalformedError, parse_yaml, read_text, shown

__all__ = ["Recipe", "RequestConfig", "merge", "read_recipe_file"]

_MAX_BYTES = 2**18
"""Of a recipe file."""


class RequestConfig(Config):
    """The request that is being served."""

    id: str = Field(default="demo", pattern=NAME_PATTERN)
    """Identifier of the request; part of file, run and model names."""
    reason: str = "demonstration on invented people"
    """Why it was made, for the record."""


class Recipe(Config):
    """A complete run: one request, one base model, one adapter, and how they are trained, swept, judged and recorded."""

    name: str = Field(default="demo", pattern=NAME_PATTERN)
    """Name of the run; the same name continues an interrupted one."""
    seed: NonNegativeInt = 0
    """Seed of adapter weights, batch order and retain partners."""
    output: Path = Path("outputs")
    """Folder that everything is written to; on a cluster, shared storage that every node sees at the same path."""
    request: RequestConfig = RequestConfig()
    """The request."""
    data: DataConfig = TestbedData()
    """Where the records come from."""
    prompt: PromptConfig = PromptConfig()
    """How records become token ids."""
    model: ModelConfig = ModelConfig()
    """The frozen base."""
    adapter: AdapterConfig = AdapterConfig()
    """Gates and interventions."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What training minimises."""
    train: TrainConfig = TrainConfig()
    """How training runs."""
    cache: CacheConfig = CacheConfig()
    """The prefix cache."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How an adapter is scored."""
    calibration: CalibrationConfig = CalibrationConfig()
    """What is promised about ordinary prompts."""
    promotion: PromotionConfig = PromotionConfig()
    """What a candidate has to reach."""
    sweep: SweepConfig = SweepConfig()
    """What Ray Tune varies."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    ledger: LedgerConfig = LedgerConfig()
    """Requests that are answered one after another."""
    serving: ServingConfig = ServingConfig()
    """The server of the champion."""
    cluster: ClusterConfig = ClusterConfig()
    """The local Ray cluster."""

    @model_validator(mode="before")
    @classmethod
    def _texts_are_plain(cls, values: Any) -> Any:
        """No file system takes a zero byte, and no name or path of anybody's has another control character."""
        for path, text in _texts(values):
            if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in text):
                raise ValueError(f"`{path}` must hold no control characters, got {shown(text)}; write it without them")
        return values

    @model_validator(mode="after")
    def _engine_differentiates_twice(self) -> Self:
        invariance, train = self.objective.invariance, self.train
        sharded = train.engine == "deepspeed" and train.zero_stage == 3
        if invariance is not None and invariance.reading == "parameters" and sharded:
            raise ValueError(
                "`objective.invariance.reading: parameters` differentiates twice, which a base sharded by ZeRO-3 cannot, got "
                "`train.engine` deepspeed with `train.zero_stage` 3; set `train.engine: torch`, or `reading: logits`"
            )
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "the configuration") -> Self:
        """Validate nested values.

        Raises:
            ConfigError: with the path, the rule and the value of everything that is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise explain(error, cls, where=where) from None

    def replace(self, values: Mapping[str, Any]) -> Self:
        """Return a new recipe with nested values replaced, validated again."""
        return self.parse(merge(self.model_dump(mode="json"), values), where=f"recipe `{self.name}` with {dict(values)}")

    @property
    def registered_model(self) -> str:
        """Name of this request's model in the registry."""
        return self.tracking.registered_model or f"grun-{self.request.id}"

    @property
    def ledger_model(self) -> str:
        """Name of the ledger's model in the registry, whose versions are stacks."""
        return self.tracking.registered_model or f"grun-ledger-{self.ledger.name}"

    @property
    def vault(self) -> Path:
        """Where the text to be forgotten is kept."""
        return self.ledger.vault or self.output / "vault"


def _texts(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested values, with its dotted path."""
    if isinstance(values, str | Path):
        yield path, str(values)
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield from _texts(value, f"{path}.{name}".lstrip("."))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, path)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `above` over `below`. Where a section's `kind` changes, the other fields below belong to another kind and go."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            changes_kind = "kind" in value and value["kind"] != old.get("kind")
            merged[key] = dict(value) if changes_kind else merge(old, value)
        else:
            merged[key] = value
    return merged


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read a YAML recipe as nested values, not yet validated.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        values = parse_yaml(read_text(path, limit=_MAX_BYTES))
    except OSError as error:
        raise ConfigError(f"a recipe must be a readable file, got {str(path)!r} ({error.strerror}); check the path") from None
    except MalformedError as error:
        raise ConfigError(f"a recipe must be YAML, got {str(path)!r}: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"a recipe must hold sections and fields, got a {type(values).__name__} in {str(path)!r}")
    return values
