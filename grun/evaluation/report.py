"""The report of an evaluation: numbers, each with its direction, sample count and the digest of the rows behind it.

One that is not a finite number is null. Whoever decides by a metric reads it with :meth:`EvalReport.value`, which
refuses a null, and one that the report does not have.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from grun import __version__
from grun.certificate import Certificate
from grun.config.base import Config
from grun.errors import DataError, near_miss
from grun.evaluation.attacks import AttackResult
from grun.evaluation.report_file import ReportFile
from grun.evaluation.report_parts import Cost, GateHistogram, Provenance, ThresholdPoint, Verdict
from grun.reading import MalformedError, parse_json

__all__ = ["Direction", "EvalReport", "Metric", "Role"]

Role = Literal["forget", "forget_unseen", "retain", "utility", "holdout", "nonmember"]
"""What a set is for: questions to forget, the same in unseen words, kept and trained on, kept, never trained on, never taught to
any model."""

Direction = Literal["higher", "lower", "zero", "half"]
"""Which way is better: up, down, towards 0, or towards 1/2. The last two are for numbers that are bad on either side."""

_BETTER: Mapping[Direction, str] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "zero": "closest to 0 is best",
    "half": "closest to 0.5 is best",
}


class Metric(Config):
    """One number of a report."""

    name: str
    """`part/quantity`, for instance `forget/rouge_l_recall`."""
    value: float | None
    """The number; null where it is not a finite one."""
    direction: Direction
    """Which way is better."""
    num_samples: NonNegativeInt
    """Rows that it was computed from."""
    digest: str
    """SHA-256 of the set, or of all sets, that it was computed from."""

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        return _BETTER[self.direction]


class EvalReport(ReportFile):
    """What an adapter, or a base alone, was measured to do."""

    schema_version: Literal[2] = 2
    """Layout of this file. Version 1, which knew less, is read too."""
    created_by: str = f"grun {__version__}"
    """Version of the code."""
    adapter_digest: str | None = None
    """Digest of the adapter; null for the base alone."""
    base_digest: str
    """Digest of the base model's weights, as they are on disk."""
    base_variant: str | None = None
    """How the base was stored, for instance in 4 bits; null: as it is on disk."""
    gate_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Gate threshold that it was scored at; null for soft gates."""
    part: Literal["all", "validation", "test"] = "all"
    """Which rows were scored."""
    metrics: tuple[Metric, ...]
    """Every metric, sets first."""
    base_metrics: tuple[Metric, ...] = ()
    """The same of the base alone: before."""
    gates: tuple[GateHistogram, ...] = ()
    """How far gates open, by side and block."""
    curve: tuple[ThresholdPoint, ...] = ()
    """What other thresholds would give, smallest first."""
    attacks: tuple[AttackResult, ...] = ()
    """What was tried to get at what was to be forgotten."""
    certificate: Certificate | None = None
    """What is promised about ordinary prompts."""
    cost: Cost | None = None
    """What it took."""
    provenance: Provenance | None = None
    """What it is about and where it can be found."""
    verdict: Verdict | None = None
    """Whether the request is fulfilled."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for metrics in (self.metrics, self.base_metrics):
            names = [metric.name for metric in metrics]
            if len(set(names)) < len(names):
                twice = sorted({n for n in names if names.count(n) > 1})
                raise ValueError(f"every metric must have its own name, got {twice} twice")
        return self

    def __contains__(self, name: str) -> bool:
        """Whether the report has a metric of this name, be it null."""
        return any(metric.name == name for metric in self.metrics)

    def __getitem__(self, name: str) -> Metric:
        """Return a metric by name.

        Raises:
            DataError: there is none.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        known = [metric.name for metric in self.metrics]
        raise DataError(
            f"a metric must be one of the report's {len(known)}, got `{name}`{near_miss(name, known)}; evaluate again"
        )

    def before(self, name: str) -> float | None:
        """Return the base's own number; None where it is not known."""
        return next((metric.value for metric in self.base_metrics if metric.name == name), None)

    def value(self, name: str) -> float:
        """Return a metric's number.

        Raises:
            DataError: the report has no such metric, or it is null.
        """
        value = self[name].value
        if value is None:
            raise DataError(f"`{name}` must be a finite number, got null; look at the rows it was computed from")
        return value

    @classmethod
    def upgraded(cls, content: bytes) -> bytes:
        """A report of version 1 as one of version 2, which lacks what came since; anything else as it is."""
        try:
            values = parse_json(content)
        except MalformedError:
            return content
        is_old = isinstance(values, dict) and values.get("schema_version") == 1
        return json.dumps({**values, "schema_version": 2}).encode() if is_old else content
