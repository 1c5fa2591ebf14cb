"""What a report will hold, and what it will lack: known from the sets alone, before anything is trained.

| metric | needs |
|---|---|
| `forget_quality*` | wrong answers of the forget set; a retain-only model or its logs |
| `mia/*` | non-members: records that no model was ever taught |
| `mia/reference_auc`, `mia/min_k_auc_retain_only`, `privleak` | non-members; a retain-only model or its logs |
| `multiple_choice/accuracy` | a file of questions |
"""

import re
from collections.abc import Collection, Sequence

from grun.data.records import QARecord
from grun.errors import ConfigError, near_miss
from grun.evaluation.sets import EvalSet
from grun.evaluation.summary import ROW_QUANTITIES
from grun.evaluation.truth_ratio import TRUTH_RATIOS

__all__ = ["MULTIPLE_CHOICE", "check_required", "missing_metrics", "possible_metrics"]

MULTIPLE_CHOICE = "multiple_choice/accuracy"

_FORGET_QUALITY = tuple(
    f"forget_quality{convention}{suffix}" for convention in ("", "_open_unlearning") for suffix in ("", "_ks", "_log10_p")
)
_MEMBERSHIP = ("mia/loss_auc", "mia/zlib_auc", "mia/min_k_auc", "mia/min_k_plus_plus_auc")
_MEMBERSHIP_BESIDE_RETAIN_ONLY = ("mia/reference_auc", "mia/min_k_auc_retain_only", "privleak")
_GATES = ("auroc", "false_open_rate", "false_open_rate_upper95", "forget_open_rate")

_GET_RETAIN_ONLY = (
    "name a model that never saw the forget set (`model.retain_path`, or `model.retain_twin` with a taught base), or its logs "
    "(`evaluation.retain_logs`)"
)
_GET_NONMEMBERS = (
    "name records that no model ever saw (`data.nonmembers` of jsonl and hub data, a `holdout` file for the split in a TOFU folder; "
    "the testbed invents them while `data.num_people` leaves names)"
)
_GET_WRONG_ANSWERS = "give the records to forget `perturbed_answer`"
_GET_QUESTIONS = "name a file of questions with `evaluation.multiple_choice`"


def missing_metrics(sets: Sequence[EvalSet], *, retain_only: bool, multiple_choice: bool) -> dict[str, str]:
    """Return the metrics that cannot be computed, each with how to get it.

    Args:
        retain_only: whether a retain-only model or its logs are there.
        multiple_choice: whether a file of questions is there.
    """
    missing: dict[str, str] = {}
    forget = [s for s in sets if s.role == "forget"]
    if not any(_has_wrong_answers(s) for s in forget):
        missing |= dict.fromkeys(_FORGET_QUALITY, _GET_WRONG_ANSWERS)
    elif not retain_only:
        missing |= dict.fromkeys(_FORGET_QUALITY, _GET_RETAIN_ONLY)
    if not any(s.role == "nonmember" for s in sets):
        missing |= dict.fromkeys((*_MEMBERSHIP, *_MEMBERSHIP_BESIDE_RETAIN_ONLY), _GET_NONMEMBERS)
    elif not retain_only:
        missing |= dict.fromkeys(_MEMBERSHIP_BESIDE_RETAIN_ONLY, _GET_RETAIN_ONLY)
    if not multiple_choice:
        missing[MULTIPLE_CHOICE] = _GET_QUESTIONS
    return missing


def possible_metrics(sets: Sequence[EvalSet]) -> frozenset[str]:
    """Return every metric that a report on these sets can have, those of a single layer left out."""
    of_sets = {
        f"{s.name}/{quantity}"
        for s in sets
        if s.role != "nonmember"
        for quantity in (
            *ROW_QUANTITIES,
            *(TRUTH_RATIOS if _has_wrong_answers(s) else ()),
            *(("probability_normalised",) if s.role == "utility" and _has_wrong_answers(s) else ()),
        )
    }
    return frozenset(
        {
            *of_sets,
            "model_utility",
            "model_utility_ratio",
            *_FORGET_QUALITY,
            *_MEMBERSHIP,
            *_MEMBERSHIP_BESIDE_RETAIN_ONLY,
            *(f"gate/{quantity}" for quantity in _GATES),
            MULTIPLE_CHOICE,
        }
    )


def check_required(required: Collection[str], sets: Sequence[EvalSet], *, retain_only: bool, multiple_choice: bool) -> None:
    """Refuse a recipe that requires a metric which there will not be.

    Raises:
        ConfigError: with the metrics and how to get them.
    """
    possible = possible_metrics(sets)
    for name in required:
        if re.sub(r"_layer_\d+$", "", name) not in possible:
            raise ConfigError(
                f"`evaluation.require` must name metrics of a report on this data, got `{name}`{near_miss(name, possible)}; "
                "`pipelines/evaluate.py` prints them all"
            )
    missing = missing_metrics(sets, retain_only=retain_only, multiple_choice=multiple_choice)
    if lacking := [name for name in required if name in missing]:
        remedies = dict.fromkeys(missing[name] for name in lacking)
        raise ConfigError(
            f"metrics in `evaluation.require` must be computable, got {', '.join(lacking)}, which are not; {'; and '.join(remedies)}"
        )


def _has_wrong_answers(evaluated: EvalSet) -> bool:
    return any(isinstance(p.record, QARecord) and p.record.wrong_answers for p in evaluated.prompts)
