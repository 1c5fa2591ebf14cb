"""From scored rows to a report: every metric with its direction, sample count and the digest of the rows behind it.

| metric | over |
|---|---|
| `<set>/probability`, `<set>/rouge_1_recall`, `<set>/rouge_l_recall` | each set but non-members |
| `<set>/exact_memorization`, `<set>/extraction_strength` | each set but non-members |
| `<set>/truth_ratio_*` | each set but non-members, in every convention of :mod:`grun.evaluation.truth_ratio` |
| `<set>/probability_normalised` | utility sets, over the wrong answers |
| `model_utility`, `model_utility_ratio` | utility and retain sets; the ratio is to the base's own |
| `forget_quality`, `forget_quality_ks`, `forget_quality_log10_p` | the forget set, against a retain-only model; \
`num_samples` counts the rows of each model |
| `forget_quality_open_unlearning[_ks, _log10_p]` | the same on open-unlearning's own R, whose 1e-10 counts where P(base) is tiny |
| `mia/{loss,zlib,min_k,min_k_plus_plus}_auc` | the forget set against non-members |
| `mia/reference_auc` | the same; scores relative to a retain-only model |
| `mia/min_k_auc_retain_only` | the same rows under the retain-only model: what `mia/min_k_auc` should come close to |
| `privleak` | from the two before, per cent |
| `gate/auroc[_layer_<l>]` | unseen forget prompts against holdout prompts, neither of which training saw |
| `gate/false_open_rate[_layer_<l>]`, `gate/false_open_rate_upper95` | holdout prompts |
| `gate/forget_open_rate[_layer_<l>]` | unseen forget prompts |
| `multiple_choice/accuracy` | the questions of `evaluation.multiple_choice`; added by :mod:`grun.evaluation.multiple_choice` |

A metric whose rows lack what it needs (wrong answers, generations, gates, non-members, a retain-only model) is absent.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from grun.errors import DataError
from grun.evaluation.forget_quality import forget_quality
from grun.evaluation.gate_separation import clopper_pearson_upper, gate_auroc, open_rates
from grun.evaluation.membership import membership_auc, privleak
from grun.evaluation.model_utility import model_utility
from grun.evaluation.report import Direction, EvalReport, Metric, Role
from grun.evaluation.scores import RowScore
from grun.evaluation.truth_ratio import (
    FALLS_WHEN_FORGOTTEN,
    LOW_WHEN_KEPT,
    TRUTH_RATIOS,
    Side,
    log_ratio_geometric,
    normalised_probability,
    ratio_open_unlearning,
)

__all__ = ["RETAIN_ONLY_ROLES", "ROW_QUANTITIES", "ScoredSet", "summarise"]

_UTILITY_TRUTH_RATIO = "truth_ratio_tofu_geometric"
"""The convention that enters model utility, TOFU's own."""

_HIGHER_WHEN_FORGOTTEN = TRUTH_RATIOS.keys() - FALLS_WHEN_FORGOTTEN
"""Truth ratios that rise as a forget set is forgotten."""

ROW_QUANTITIES = ("probability", "rouge_1_recall", "rouge_l_recall", "exact_memorization", "extraction_strength")
"""Numbers of a row whose mean is a metric of its set."""

RETAIN_ONLY_ROLES: frozenset[Role] = frozenset({"forget", "nonmember"})
"""Roles of the sets that a retain-only model's answers are needed for."""

_ATTACKS: Mapping[str, Callable[[RowScore], float | None]] = {
    "loss": lambda row: row.answer_nll_mean,
    "zlib": lambda row: None if row.zlib_bytes is None else row.answer_nll_mean / row.zlib_bytes,
    "min_k": lambda row: row.min_k_nats,
    "min_k_plus_plus": lambda row: row.min_k_plus_plus,
}
"""Membership inference on one model's rows: a score that is low for what the model knows."""

Rows = Mapping[str, Sequence[RowScore]]
"""Rows by set name."""


@dataclass(frozen=True)
class ScoredSet:
    """The rows of one evaluation set."""

    name: str
    role: Role
    digest: str
    """SHA-256 of the set's prompts."""
    rows: Sequence[RowScore]

    @property
    def side(self) -> Side:
        """Whether it belongs to what is forgotten or to what is kept."""
        return "forget" if self.role in ("forget", "forget_unseen") else "other"

    def with_rows(self, rows: Sequence[RowScore]) -> "ScoredSet":
        """Return the same set as another model answers it.

        Raises:
            DataError: the rows are not of the same prompts.
        """
        mine, others = ({(row.digest, row.prompt) for row in scored} for scored in (self.rows, rows))
        if mine != others:
            raise DataError(
                f"models are compared on the same prompts, got {len(mine - others)} prompt(s) of `{self.name}` that the "
                f"other model was not asked and {len(others - mine)} that only it was; score both on one set"
            )
        return ScoredSet(self.name, self.role, self.digest, rows)


def summarise(
    sets: Sequence[ScoredSet],
    *,
    base_digest: str,
    base_variant: str | None = None,
    adapter_digest: str | None = None,
    base_rows: Rows | None = None,
    retain_only_rows: Rows | None = None,
    layers: Sequence[int] = (),
    threshold: float | None = None,
    part: Literal["all", "validation", "test"] = "all",
) -> EvalReport:
    """Compute every metric that the rows allow.

    Args:
        sets: the scored sets, of different names.
        base_variant: how the base was stored, where not as it is on disk.
        base_rows: the base's own rows by set name, the measure of `model_utility_ratio`.
        retain_only_rows: the sets of :data:`RETAIN_ONLY_ROLES` as answered by a model that never saw the forget set, the
            measure of forget quality and of membership inference.
        layers: the adapter's layers, as many as a row has gate values.
        threshold: the gate threshold that the rows were scored at; None for soft gates.

    Raises:
        DataError: a set is empty or named twice, or the models were not asked the same.
    """
    _check(sets, layers)
    metrics = [
        *(metric for scored in sets if scored.role != "nonmember" for metric in _set_metrics(scored)),
        *_utility_metrics([s for s in sets if s.role in ("utility", "retain")], base_rows),
        *(
            _forget_quality_metrics([s for s in sets if s.role == "forget"], retain_only_rows)
            if retain_only_rows is not None
            else ()
        ),
        *_membership_metrics(sets, retain_only_rows),
        *_gate_metrics(sets, layers, threshold),
    ]
    return EvalReport(
        adapter_digest=adapter_digest,
        base_digest=base_digest,
        base_variant=base_variant,
        gate_threshold=threshold,
        part=part,
        metrics=tuple(metrics),
    )


def _check(sets: Sequence[ScoredSet], layers: Sequence[int]) -> None:
    names = [scored.name for scored in sets]
    if len(set(names)) < len(names):
        raise DataError(f"every set of a report must have its own name, got {names}; rename one")
    for scored in sets:
        if not scored.rows:
            raise DataError(f"a set must hold at least one scored row, got none in `{scored.name}`; leave it out")
        widths = {len(row.gate_values) for row in scored.rows}
        if widths != {len(layers)}:
            raise DataError(
                f"a row must have one gate value for each of the layers {tuple(layers)}, got {sorted(widths)} values in "
                f"`{scored.name}`; score the set with this adapter"
            )


def _joint_digest(sets: Iterable[ScoredSet]) -> str:
    return hashlib.sha256("\n".join(sorted(f"{s.name} {s.digest}" for s in sets)).encode()).hexdigest()


def _set_metrics(scored: ScoredSet) -> list[Metric]:
    """The means over one set."""
    rows = scored.rows
    comparable = [row for row in rows if row.wrong_nll_means]
    values = {
        **{name: [value for row in rows if (value := getattr(row, name)) is not None] for name in ROW_QUANTITIES},
        **{
            name: [ratio(row.base_nll_mean, row.wrong_nll_means, scored.side) for row in comparable]
            for name, ratio in TRUTH_RATIOS.items()
        },
    }
    if scored.role == "utility":
        values["probability_normalised"] = [
            normalised_probability(row.answer_nll_mean, row.wrong_nll_means) for row in comparable
        ]
    return [
        Metric(
            name=f"{scored.name}/{quantity}",
            value=fmean(numbers),
            direction=_direction(quantity, scored.side),
            num_samples=len(numbers),
            digest=scored.digest,
        )
        for quantity, numbers in values.items()
        if numbers
    ]


def _direction(quantity: str, side: Side) -> Direction:
    """Which way a set's metric is better: what is kept should be known, what is forgotten should not."""
    rises = quantity in _HIGHER_WHEN_FORGOTTEN if side == "forget" else quantity not in LOW_WHEN_KEPT
    return "higher" if rises else "lower"


def _utility_numbers(scored: ScoredSet) -> list[float]:
    """A set's numbers in model utility: probability (normalised for the utility role), ROUGE-L recall, truth ratio.

    Where its records have no wrong answers, the first is not normalised and the last is left out, for any model alike.
    """
    values = {metric.name.removeprefix(f"{scored.name}/"): metric.value for metric in _set_metrics(scored)}
    probability = "probability_normalised" if "probability_normalised" in values else "probability"
    numbers = (values.get(quantity) for quantity in (probability, "rouge_l_recall", _UTILITY_TRUTH_RATIO))
    return [number for number in numbers if number is not None]


def _utility_metrics(sets: Sequence[ScoredSet], base_rows: Rows | None) -> list[Metric]:
    if not sets:
        return []
    count, digest = sum(len(scored.rows) for scored in sets), _joint_digest(sets)
    utility = model_utility([number for scored in sets for number in _utility_numbers(scored)])
    metrics = [Metric(name="model_utility", value=utility, direction="higher", num_samples=count, digest=digest)]
    if base_rows is not None:
        by_base = [scored.with_rows(base_rows.get(scored.name, ())) for scored in sets]
        base = model_utility([number for scored in by_base for number in _utility_numbers(scored)])
        ratio = utility / base if base else None
        metrics.append(Metric(name="model_utility_ratio", value=ratio, direction="higher", num_samples=count, digest=digest))
    return metrics


def _forget_quality_metrics(sets: Sequence[ScoredSet], retain_only_rows: Rows) -> list[Metric]:
    if not sets:
        return []
    [forget] = sets
    ours, theirs = (
        [row for row in scored.rows if row.wrong_nll_means]
        for scored in (forget, forget.with_rows(retain_only_rows.get(forget.name, ())))
    )
    if not ours:
        return []

    def compared(ratio: Callable[[float, Sequence[float]], float], name: str) -> list[Metric]:
        quality = forget_quality(*([ratio(row.base_nll_mean, row.wrong_nll_means) for row in rows] for rows in (ours, theirs)))

        def metric(suffix: str, value: float, direction: Direction) -> Metric:
            return Metric(name=f"{name}{suffix}", value=value, direction=direction, num_samples=len(ours), digest=forget.digest)

        return [
            metric("", quality.p_value, "higher"),
            metric("_ks", quality.ks_statistic, "lower"),
            metric("_log10_p", quality.log10_p, "higher"),
        ]

    return [
        *compared(log_ratio_geometric, "forget_quality"),
        *compared(ratio_open_unlearning, "forget_quality_open_unlearning"),
    ]


def _membership_metrics(sets: Sequence[ScoredSet], retain_only_rows: Rows | None) -> list[Metric]:
    """Membership inference, forget rows against rows that no model was ever taught."""
    pair = [scored for role in ("forget", "nonmember") for scored in sets if scored.role == role]
    if [scored.role for scored in pair] != ["forget", "nonmember"]:
        return []
    count, digest = sum(len(scored.rows) for scored in pair), _joint_digest(pair)

    def metric(name: str, value: float, direction: Direction) -> Metric:
        return Metric(name=name, value=value, direction=direction, num_samples=count, digest=digest)

    aucs = _aucs(pair)
    metrics = [metric(f"mia/{attack}_auc", auc, "half") for attack, auc in aucs.items()]
    if retain_only_rows is None:
        return metrics
    by_retain_only = [scored.with_rows(retain_only_rows.get(scored.name, ())) for scored in pair]
    losses = [{(row.digest, row.prompt): row.answer_nll_mean for row in scored.rows} for scored in by_retain_only]
    forget, nonmembers = (
        [row.answer_nll_mean - known[row.digest, row.prompt] for row in scored.rows]
        for scored, known in zip(pair, losses, strict=True)
    )
    metrics.append(metric("mia/reference_auc", membership_auc(forget, nonmembers), "half"))
    expected = _aucs(by_retain_only)
    if "min_k" in aucs and "min_k" in expected:
        metrics.append(metric("mia/min_k_auc_retain_only", expected["min_k"], "half"))
        metrics.append(metric("privleak", privleak(aucs["min_k"], expected["min_k"]), "zero"))
    return metrics


def _aucs(pair: Sequence[ScoredSet]) -> dict[str, float]:
    """The AUC of each attack that asks one model alone, by its name; of those whose numbers the rows have."""
    aucs = {}
    for attack, score in _ATTACKS.items():
        forget, nonmembers = ([value for row in scored.rows if (value := score(row)) is not None] for scored in pair)
        if forget and nonmembers:
            aucs[attack] = membership_auc(forget, nonmembers)
    return aucs


def _gate_metrics(sets: Sequence[ScoredSet], layers: Sequence[int], threshold: float | None) -> list[Metric]:
    unseen, ordinary = ([s for s in sets if s.role == role] for role in ("forget_unseen", "holdout"))
    if not (layers and unseen and ordinary):
        return []
    forget_values, ordinary_values = ([row.gate_values for s in group for row in s.rows] for group in (unseen, ordinary))
    auroc = gate_auroc(forget_values, ordinary_values)
    recall, false_open = open_rates(forget_values, threshold), open_rates(ordinary_values, threshold)
    num_open = round(false_open.any * len(ordinary_values))
    upper = clopper_pearson_upper(num_open, len(ordinary_values))

    def metric(quantity: str, value: float, direction: Direction, group: Sequence[ScoredSet]) -> Metric:
        count = sum(len(scored.rows) for scored in group)
        return Metric(name=f"gate/{quantity}", value=value, direction=direction, num_samples=count, digest=_joint_digest(group))

    return [
        metric("auroc", auroc.largest, "higher", [*unseen, *ordinary]),
        *(metric(f"auroc_layer_{k}", v, "higher", [*unseen, *ordinary]) for k, v in zip(layers, auroc.per_layer, strict=True)),
        metric("false_open_rate", false_open.any, "lower", ordinary),
        metric("false_open_rate_upper95", upper, "lower", ordinary),
        *(metric(f"false_open_rate_layer_{k}", v, "lower", ordinary) for k, v in zip(layers, false_open.per_layer, strict=True)),
        metric("forget_open_rate", recall.any, "higher", unseen),
        *(metric(f"forget_open_rate_layer_{k}", v, "higher", unseen) for k, v in zip(layers, recall.per_layer, strict=True)),
    ]
