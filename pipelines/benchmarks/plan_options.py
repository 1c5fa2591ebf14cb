"""The options of `plan`, in the words of the recipe where it has them. Free of torch."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from grun.config import AdapterConfig, TrainConfig
from grun.config.base import Config
from grun.errors import ConfigError

__all__ = ["PlanOptions", "add_plan_options", "parse_plan_options"]


class PlanOptions(Config):
    """What is calculated."""

    model_path: Path | None = None
    """A model folder, of which config.json is enough; unset: Llama 3.1 with 8, 70 and 405 billion weights."""
    gpu: Literal["a100", "h100", "h200", "b200"] = "h100"
    """Which GPU each worker has."""
    num_workers: PositiveInt = 8
    """Workers, eight to a node."""
    batch_size: PositiveInt = TrainConfig().batch_size
    """Forget rows (and as many retain rows) of a step, over all workers together."""
    epochs: PositiveInt = TrainConfig().epochs
    """Passes over the forget rows."""
    relative_depths: tuple[float, ...] = AdapterConfig().relative_depths
    """Edited blocks as fractions of the number of blocks, as 0.5,0.75."""
    forget_rows: PositiveInt = 1000
    """Rows to forget."""
    retain_rows: PositiveInt = 9000
    """Retain rows that training meets."""
    prompt_tokens: PositiveInt = 512
    """Tokens of a prompt."""
    answer_tokens: PositiveInt = 128
    """Tokens of an answer."""
    trials: PositiveInt = 16
    """Trials of a sweep."""
    utilisation: float = Field(default=0.4, gt=0, le=1)
    """Share of a GPU's peak that products of matrices reach."""

    @property
    def adapter(self) -> AdapterConfig:
        """The adapter that is trained: the recipe's default, at these depths."""
        return AdapterConfig(relative_depths=self.relative_depths)

    @model_validator(mode="after")
    def _workers_share_the_batch(self) -> Self:
        if self.batch_size % self.num_workers:
            raise ValueError(
                f"`--train.batch_size` must be a multiple of `--train.num_workers`, got {self.batch_size} and {self.num_workers}"
            )
        return self

    @field_validator("relative_depths", mode="before")
    @classmethod
    def _depths_fit_an_adapter(cls, value: Any) -> tuple[float, ...]:
        try:
            depths = tuple(float(depth) for depth in value.split(",")) if isinstance(value, str) else value
            return AdapterConfig(relative_depths=depths).relative_depths
        except ValueError:  # pydantic's own is one
            raise ValueError("must be increasing numbers from 0 to below 1, as 0.5,0.75") from None


_FLAGS = {
    "model_path": "--model.path",
    "gpu": "--gpu",
    "num_workers": "--train.num_workers",
    "batch_size": "--train.batch_size",
    "epochs": "--train.epochs",
    "relative_depths": "--adapter.relative_depths",
    "forget_rows": "--forget_rows",
    "retain_rows": "--retain_rows",
    "prompt_tokens": "--prompt_tokens",
    "answer_tokens": "--answer_tokens",
    "trials": "--trials",
    "utilisation": "--utilisation",
}
"""The option of each field."""


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every field; one that is not given stays None."""
    group = parser.add_argument_group("of `plan` alone")
    for name, field in PlanOptions.model_fields.items():
        shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        default = "" if shown is None else f" [default: {shown}]"
        text = f"{field.description}{default}".replace("%", "%%")
        group.add_argument(_FLAGS[name], dest=f"plan_{name}", metavar=_FLAGS[name].split(".")[-1].strip("-").upper(), help=text)


def parse_plan_options(values: Mapping[str, Any], benchmark: str) -> PlanOptions:
    """Validate what the parser found.

    Args:
        values: the parser's, others among them.
        benchmark: which one they were given to.

    Raises:
        ConfigError: a value breaks a rule, or the options were given to another benchmark.
    """
    given = {name: values[f"plan_{name}"] for name in _FLAGS if values[f"plan_{name}"] is not None}
    if given and benchmark != "plan":
        flags = ", ".join(f"`{_FLAGS[name]}`" for name in given)
        raise ConfigError(f"{flags} belongs to `plan` alone, got it with `{benchmark}`; leave it out")
    try:
        options = PlanOptions.model_validate(given)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors(include_url=False)]
        raise ConfigError(f"{'; '.join(lines)}; `--help` lists all options") from None
    return options


def _explain(item: Any) -> str:
    message = item["msg"].removeprefix("Value error, ")
    return f"`{_FLAGS[item['loc'][0]]}`: {message}, got {item['input']!r}" if item["loc"] else message
