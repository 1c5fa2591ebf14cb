"""What a report will lack is known before it is made."""

import re

import pytest

from grun.data.records import QARecord, TextRecord
from grun.data.splits import Splits
from grun.errors import ConfigError
from grun.evaluation.requirements import check_required, missing_metrics, possible_metrics
from grun.evaluation.sets import EvalSet, evaluation_sets


def people(name: str, *, wrong: bool = True) -> tuple[QARecord, ...]:
    return tuple(
        QARecord(f"Who is {name} {n}?", f"{name} {n} paints.", wrong_answers=("No.",) if wrong else ()) for n in range(3)
    )


def sets(*, wrong: bool = True, nonmembers: bool = True) -> tuple[EvalSet, ...]:
    return evaluation_sets(
        Splits(
            people("Ilva", wrong=wrong),
            people("Bram"),
            (TextRecord("Bells ring at noon."),),
            {"facts": people("Odo")},
            people("Runa") if nonmembers else (),
        )
    )


BESIDE_RETAIN_ONLY = {"mia/reference_auc", "mia/min_k_auc_retain_only", "privleak"}
MEMBERSHIP = {"mia/loss_auc", "mia/zlib_auc", "mia/min_k_auc", "mia/min_k_plus_plus_auc"}
FORGET_QUALITY = {f"forget_quality{name}{suffix}" for name in ("", "_open_unlearning") for suffix in ("", "_ks", "_log10_p")}


def test_with_everything_there_nothing_is_missing() -> None:
    assert missing_metrics(sets(), retain_only=True, multiple_choice=True) == {}


def test_each_thing_that_is_not_there_costs_its_metrics() -> None:
    no_model = missing_metrics(sets(), retain_only=False, multiple_choice=True)
    assert no_model.keys() == FORGET_QUALITY | BESIDE_RETAIN_ONLY
    assert all("`evaluation.retain_logs`" in remedy for remedy in no_model.values())
    nobody = missing_metrics(sets(nonmembers=False), retain_only=True, multiple_choice=True)
    assert nobody.keys() == MEMBERSHIP | BESIDE_RETAIN_ONLY
    assert all("`data.nonmembers`" in remedy for remedy in nobody.values())
    nothing_wrong = missing_metrics(sets(wrong=False), retain_only=True, multiple_choice=True)
    assert nothing_wrong.keys() == FORGET_QUALITY
    assert missing_metrics(sets(), retain_only=True, multiple_choice=False).keys() == {"multiple_choice/accuracy"}


def test_a_required_metric_that_cannot_be_computed_stops_with_what_it_takes() -> None:
    required = ("forget/rouge_l_recall", "privleak", "forget_quality")
    check_required(required, sets(), retain_only=True, multiple_choice=False)
    with pytest.raises(ConfigError, match=re.escape("got privleak, forget_quality, which are not; name a model that never saw")):
        check_required(required, sets(), retain_only=False, multiple_choice=False)
    with pytest.raises(ConfigError, match=r"got privleak, which are not; name records that no model ever saw"):
        check_required(required, sets(nonmembers=False), retain_only=True, multiple_choice=False)
    with pytest.raises(ConfigError, match=r"name a file of questions with `evaluation\.multiple_choice`"):
        check_required(("multiple_choice/accuracy",), sets(), retain_only=True, multiple_choice=False)


@pytest.mark.parametrize(
    "name", ["forget_qualty", "holdout/truth_ratio_grun", "nonmembers/probability", "facts/probability_normalized"]
)
def test_a_metric_that_no_report_on_this_data_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"`evaluation\.require` must name metrics of a report on this data, got `{name}`"):
        check_required((name,), sets(), retain_only=True, multiple_choice=True)


def test_a_layers_gates_may_be_required() -> None:
    check_required(("gate/auroc_layer_7", "gate/false_open_rate"), sets(), retain_only=False, multiple_choice=False)
    with pytest.raises(ConfigError, match="must name metrics of a report on this data, got `gate/auroc_layer_last`"):
        check_required(("gate/auroc_layer_last",), sets(), retain_only=False, multiple_choice=False)


def test_truth_ratios_are_possible_where_there_are_wrong_answers() -> None:
    possible = possible_metrics(sets(wrong=False))
    assert "facts/truth_ratio_prob_mean" in possible
    assert "forget/truth_ratio_prob_mean" not in possible
    assert "forget_unseen/extraction_strength" in possible
