"""From scored rows to the report, and the report's file."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from grun.certificate import Certificate, OpenCount
from grun.errors import DataError
from grun.evaluation.report import EvalReport, Metric, Role
from grun.evaluation.scores import RowScore
from grun.evaluation.summary import ScoredSet, summarise
from tests.evaluation.example_report import example_report

WRONG = (1.5, 2.0, 2.5, 3.0, 3.5)


def row(
    digest: str,
    nll: float,
    *,
    rouge: float | None = 0.5,
    wrong: Sequence[float] = WRONG,
    gates: Sequence[float] = (),
    paraphrased: float | None = 1.0,
) -> RowScore:
    return RowScore(digest, "set", "question", 2, 2 * nll, paraphrased, tuple(wrong), "text", rouge, tuple(gates))


def scored(name: str, role: Role, *rows: RowScore) -> ScoredSet:
    return ScoredSet(name, role, f"digest of {name}", rows)


def values(report: EvalReport) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in report.metrics}


def test_set_metrics_are_means_over_rows() -> None:
    report = summarise([scored("forget", "forget", row("a", 0.0, rouge=0.2), row("b", math.log(2), rouge=0.6))], base_digest="b")
    assert report.value("forget/probability") == pytest.approx(0.75)
    assert report.value("forget/rouge_l_recall") == pytest.approx(0.4)
    assert report.value("forget/truth_ratio_grun") == pytest.approx(0.7170078914)
    assert report.value("forget/truth_ratio_tofu_arithmetic") == pytest.approx(0.2829921086)
    assert report.value("forget/truth_ratio_tofu_geometric") == pytest.approx(0.2231301601)
    metric = report["forget/rouge_l_recall"]
    assert (metric.num_samples, metric.digest) == (2, "digest of forget")


@pytest.mark.parametrize("role", ["forget", "forget_unseen"])
def test_unseen_prompts_count_as_forget_prompts(role: Role) -> None:
    report = summarise([scored("s", role, row("a", 1.0))], base_digest="b")
    assert report.value("s/truth_ratio_tofu_geometric") == pytest.approx(0.2231301601)
    assert report["s/rouge_l_recall"].direction == report["s/probability"].direction == "lower"


@pytest.mark.parametrize("role", ["retain", "utility", "holdout"])
def test_what_is_kept_is_scored_the_other_way_round(role: Role) -> None:
    report = summarise([scored("s", role, row("a", 1.0))], base_digest="b")
    assert report.value("s/truth_ratio_tofu_geometric") == pytest.approx(0.7768698399)
    # min(R, 1/R) is high where right and wrong answers are alike
    lower = {metric.name for metric in report.metrics if metric.name.startswith("s/") and metric.direction == "lower"}
    assert lower == {"s/truth_ratio_closer_to_1_better"}


def test_directions_of_truth_ratios_on_a_forget_set() -> None:
    report = summarise([scored("forget", "forget", row("a", 1.0))], base_digest="b")
    directions = {m.name.removeprefix("forget/"): m.direction for m in report.metrics if "truth" in m.name}
    assert directions == {
        "truth_ratio_grun": "lower",
        "truth_ratio_tofu_arithmetic": "higher",
        "truth_ratio_tofu_geometric": "higher",
        "truth_ratio_closer_to_1_better": "higher",
        "truth_ratio_true_better": "lower",
        "truth_ratio_prob_mean": "lower",
    }


def test_metrics_whose_rows_lack_something_are_absent_not_zero() -> None:
    rows = row("a", 1.0, wrong=(), rouge=None), row("b", 1.0, rouge=None)
    report = summarise([scored("forget", "forget", *rows)], base_digest="b", retain_only_rows={"forget": rows})
    assert report["forget/probability"].num_samples == 2
    assert report["forget/truth_ratio_grun"].num_samples == 1
    assert "forget/rouge_l_recall" not in report
    bare = [row("a", 1.0, wrong=())]
    assert "forget_quality" not in summarise(
        [scored("forget", "forget", *bare)], base_digest="b", retain_only_rows={"forget": bare}
    )


def test_model_utility_normalises_the_probability_of_utility_sets_alone() -> None:
    kept, asked = row("a", 0.7, rouge=0.5, wrong=(1.2, 2.3, 0.9)), row("b", 0.7, rouge=0.4, wrong=(1.2, 2.3, 0.9))
    report = summarise([scored("retain", "retain", kept), scored("facts", "utility", asked)], base_digest="b")
    truth = 1 - math.exp(1.0 - (1.2 + 2.3 + 0.9) / 3)
    numbers = [math.exp(-0.7), 0.5, truth, 0.3806394691, 0.4, truth]
    assert report.value("model_utility") == pytest.approx(6 / sum(1 / n for n in numbers))
    assert report["model_utility"].num_samples == 2
    assert "retain/probability_normalised" not in report
    assert report.value("facts/probability") == pytest.approx(math.exp(-0.7))


def test_holdout_and_forget_sets_are_no_part_of_model_utility() -> None:
    facts = scored("facts", "utility", row("a", 0.7))
    others = [scored("forget", "forget", row("b", 9.0, rouge=0.01)), scored("holdout", "holdout", row("c", 9.0, rouge=0.01))]
    alone, among = summarise([facts], base_digest="b"), summarise([*others, facts], base_digest="b")
    assert alone["model_utility"] == among["model_utility"]


def test_a_set_without_wrong_answers_gives_its_probability_and_recall_to_model_utility() -> None:
    report = summarise([scored("own", "utility", row("a", math.log(2), rouge=0.25, wrong=()))], base_digest="b")
    assert report.value("model_utility") == pytest.approx(2 / (1 / 0.5 + 1 / 0.25))


def test_model_utility_ratio_is_to_the_base_on_the_same_rows() -> None:
    facts = scored("facts", "utility", row("a", math.log(4), rouge=0.25, wrong=()))
    base = {"facts": [row("a", math.log(2), rouge=0.5, wrong=())], "unused": []}
    report = summarise([facts], base_digest="b", base_rows=base)
    assert report.value("model_utility_ratio") == pytest.approx(0.5)
    with pytest.raises(DataError, match="the same prompts"):
        summarise([facts], base_digest="b", base_rows={"facts": [row("z", 1.0)]})


def test_the_ratio_to_a_base_without_utility_is_null() -> None:
    facts, base = scored("facts", "utility", row("a", 1.0)), {"facts": [row("a", 1.0, rouge=0.0)]}
    report = summarise([facts], base_digest="b", base_rows=base)
    assert report["model_utility_ratio"].value is None
    with pytest.raises(DataError, match="finite"):
        report.value("model_utility_ratio")


def test_forget_quality_compares_truth_ratios_of_the_forget_set() -> None:
    ours, theirs = [0.5, 0.7, 0.9, 1.1, 1.3], [0.6, 0.8, 1.6, 1.8, 2.0]
    # with one wrong answer of NLL 2, R = exp(base - 2)
    mine = [row(str(i), 1.0, wrong=(2.0,), paraphrased=2.0 + math.log(r)) for i, r in enumerate(ours)]
    twin = [row(str(i), 1.0, wrong=(2.0,), paraphrased=2.0 + math.log(r)) for i, r in enumerate(theirs)]
    unseen = scored("forget_unseen", "forget_unseen", row("x", 1.0))
    report = summarise([scored("forget", "forget", *mine), unseen], base_digest="b", retain_only_rows={"forget": twin})
    assert report.value("forget_quality_ks") == pytest.approx(0.6)
    # of the C(10, 5) = 252 orders, 90 lie at least as far apart
    assert report.value("forget_quality") == pytest.approx(90 / 252)
    assert report.value("forget_quality_log10_p") == pytest.approx(math.log10(90 / 252))
    assert report["forget_quality"].num_samples == 5


def test_forget_quality_of_open_unlearning_has_its_epsilon() -> None:
    # of answers that are all but impossible, right and wrong alike, R is 1; with 1e-10 added to P(base) it is nearly 0
    mine = [row(str(i), 1.0, wrong=(40.0,), paraphrased=40.0) for i in range(4)]
    twin = [row(str(i), 1.0, wrong=(2.0,), paraphrased=2.0) for i in range(4)]
    report = summarise([scored("forget", "forget", *mine)], base_digest="b", retain_only_rows={"forget": twin})
    assert report.value("forget_quality") == 1.0
    assert report.value("forget_quality_open_unlearning_ks") == 1.0
    # of the C(8, 4) = 70 orders, two keep the two apart
    assert report.value("forget_quality_open_unlearning") == pytest.approx(2 / 70)
    assert report.value("forget_quality_open_unlearning_log10_p") == pytest.approx(math.log10(2 / 70))


def member(digest: str, loss: float, *, bytes_: int, min_k: float, plus_plus: float) -> RowScore:
    """A row of two tokens with the numbers that attacks look at."""
    return RowScore(
        digest, "set", "question", 2, 2 * loss, zlib_bytes=bytes_, min_k_nats=min_k, min_k_plus_plus=plus_plus, rouge_1_recall=0.5
    )


FORGET = (
    member("a", 1.0, bytes_=10, min_k=2.0, plus_plus=0.1),
    member("b", 3.0, bytes_=10, min_k=4.0, plus_plus=0.9),
)
NONMEMBERS = (
    member("x", 2.0, bytes_=40, min_k=3.0, plus_plus=0.2),
    member("y", 4.0, bytes_=20, min_k=5.0, plus_plus=0.3),
)
PAIR = (scored("forget", "forget", *FORGET), scored("nonmembers", "nonmember", *NONMEMBERS))


def test_membership_inference_by_hand() -> None:
    report = summarise(PAIR, base_digest="b")
    # pairs in which the non-member scores higher, of four: losses 1, 3 against 2, 4: (1,2) (1,4) (3,4)
    assert report.value("mia/loss_auc") == pytest.approx(3 / 4)
    # loss over bytes 0.1, 0.3 against 0.05, 0.2: (0.1, 0.2)
    assert report.value("mia/zlib_auc") == pytest.approx(1 / 4)
    # 2, 4 against 3, 5
    assert report.value("mia/min_k_auc") == pytest.approx(3 / 4)
    # 0.1, 0.9 against 0.2, 0.3
    assert report.value("mia/min_k_plus_plus_auc") == pytest.approx(2 / 4)
    metric = report["mia/loss_auc"]
    assert (metric.direction, metric.better, metric.num_samples) == ("half", "closest to 0.5 is best", 4)
    assert not {"mia/reference_auc", "mia/min_k_auc_retain_only", "privleak"} & values(report).keys()
    assert not any(name.startswith("nonmembers/") for name in values(report))


def test_membership_inference_beside_a_retain_only_model() -> None:
    twin = {
        # to it, b is the easier one; its own order of the rows does not matter
        "forget": (
            member("b", 0.5, bytes_=10, min_k=2.0, plus_plus=0.1),
            member("a", 2.5, bytes_=10, min_k=4.0, plus_plus=0.1),
        ),
        "nonmembers": (
            member("x", 2.0, bytes_=40, min_k=1.0, plus_plus=0.2),
            member("y", 4.0, bytes_=20, min_k=3.0, plus_plus=0.3),
        ),
    }
    report = summarise(PAIR, base_digest="b", retain_only_rows=twin)
    # losses relative to it: a 1 - 2.5 = -1.5, b 3 - 0.5 = 2.5 against 0 and 0: of four pairs the two of a
    assert report.value("mia/reference_auc") == pytest.approx(2 / 4)
    # min-k 2, 4 against 1, 3: (2, 3) alone
    assert report.value("mia/min_k_auc_retain_only") == pytest.approx(1 / 4)
    # ((1 - 3/4) - (1 - 1/4)) / (1 - 1/4) = -2/3
    assert report.value("privleak") == pytest.approx(-100 * 2 / 3, abs=1e-6)
    assert report["privleak"].better == "closest to 0 is best"
    with pytest.raises(DataError, match="the same prompts"):
        summarise(PAIR, base_digest="b", retain_only_rows={"forget": twin["forget"]})


def test_nonmembers_touch_neither_utility_nor_gates() -> None:
    facts = scored("facts", "utility", row("c", 0.7, gates=(0.1, 0.1)))
    never = scored("nonmembers", "nonmember", row("z", 9.0, rouge=0.01, gates=(1.0, 1.0)))
    alone, among = (summarise([*gated(), facts, *more], base_digest="b", layers=(3, 7), threshold=0.5) for more in ([], [never]))
    # what is missing of these rows is no attack; what they share with all rows is the loss
    assert [m for m in among.metrics if not m.name.startswith("mia/")] == list(alone.metrics)
    assert [m.name for m in among.metrics if m.name.startswith("mia/")] == ["mia/loss_auc"]


def test_memorization_is_reported_of_every_set_with_what_is_better() -> None:
    rows = [
        replace(row(name, 1.0), exact_memorization=em, extraction_strength=es)
        for name, em, es in (("a", 0.5, 0.25), ("b", 1.0, 1.0))
    ]
    bare = row("c", 1.0)  # of the end token alone
    report = summarise([scored("forget", "forget", *rows, bare), scored("facts", "utility", *rows)], base_digest="b")
    assert report.value("forget/exact_memorization") == pytest.approx(0.75)
    assert report.value("forget/extraction_strength") == pytest.approx(0.625)
    metric = report["forget/exact_memorization"]
    assert (metric.num_samples, metric.direction) == (2, "lower")
    assert report["facts/extraction_strength"].direction == "higher"


def gated() -> list[ScoredSet]:
    forget = [row(f"f{i}", 1.0, gates=gates) for i, gates in enumerate([(0.9, 0.2), (0.4, 0.8)])]
    ordinary = [row(f"o{i}", 1.0, gates=gates) for i, gates in enumerate([(0.1, 0.1), (0.6, 0.1), (0.2, 0.3), (0.1, 0.1)])]
    # seen prompts open every gate, and must not flatter the numbers of the unseen
    seen = [row("s", 1.0, gates=(1.0, 1.0))]
    return [
        scored("forget", "forget", *seen),
        scored("forget_unseen", "forget_unseen", *forget),
        scored("holdout", "holdout", *ordinary),
    ]


def test_gate_metrics_are_of_prompts_that_training_never_saw() -> None:
    report = summarise(gated(), base_digest="b", adapter_digest="a", layers=(2, 7), threshold=0.5)
    assert {name: value for name, value in values(report).items() if name.startswith("gate/")} == {
        "gate/auroc": 1.0,
        "gate/auroc_layer_2": pytest.approx(7 / 8),
        "gate/auroc_layer_7": pytest.approx(7 / 8),
        "gate/false_open_rate": 0.25,
        "gate/false_open_rate_upper95": pytest.approx(0.7513953, abs=1e-6),
        "gate/false_open_rate_layer_2": 0.25,
        "gate/false_open_rate_layer_7": 0.0,
        "gate/forget_open_rate": 1.0,
        "gate/forget_open_rate_layer_2": 0.5,
        "gate/forget_open_rate_layer_7": 0.5,
    }
    assert (report["gate/auroc"].num_samples, report["gate/false_open_rate"].num_samples) == (6, 4)
    assert report["gate/forget_open_rate"].num_samples == 2
    lower = {m.name for m in report.metrics if m.name.startswith("gate/") and m.direction == "lower"}
    assert lower == {name for name in values(report) if "false_open" in name}


def test_soft_gates_open_everywhere() -> None:
    assert summarise(gated(), base_digest="b", layers=(2, 7), threshold=None).value("gate/false_open_rate") == 1.0


def test_a_base_alone_has_no_gate_metrics() -> None:
    sets = [scored("forget_unseen", "forget_unseen", row("a", 1.0)), scored("holdout", "holdout", row("b", 1.0))]
    assert not [name for name in values(summarise(sets, base_digest="b")) if name.startswith("gate/")]


def test_rows_of_another_adapter_are_refused() -> None:
    with pytest.raises(DataError, match="one gate value for each"):
        summarise(gated(), base_digest="b", layers=(2,), threshold=0.5)


def test_an_empty_set_and_two_sets_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="at least one scored row"):
        summarise([scored("forget", "forget")], base_digest="b")
    with pytest.raises(DataError, match="its own name"):
        summarise([scored("holdout", "holdout", row("a", 1.0)), scored("holdout", "utility", row("a", 1.0))], base_digest="b")


def full() -> EvalReport:
    return summarise(gated(), base_digest="b", adapter_digest="a", layers=(2, 7), threshold=0.5, part="test")


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    report = full()
    report.save(tmp_path / "report.json")
    assert EvalReport.load(tmp_path / "report.json") == report
    assert (report.part, report.gate_threshold, report.adapter_digest) == ("test", 0.5, "a")


def test_a_report_carries_a_certificate_through_its_file(tmp_path: Path) -> None:
    calibration, check = (OpenCount(num_records=200, num_open=0, upper_bound=0.0148, digest=name) for name in ("c", "k"))
    certificate = Certificate.make(
        alpha=0.03,
        delta=0.05,
        thresholds={2: 0.5, 7: 0.5},
        calibration=calibration,
        check=check,
        base_digest="b",
        tensors_sha256="t",
    )
    report = full().model_copy(update={"certificate": certificate})
    report.save(tmp_path / "report.json")
    assert EvalReport.load(tmp_path / "report.json") == report


def test_null_survives_and_nan_is_refused(tmp_path: Path) -> None:
    metric = {"name": "m", "direction": "higher", "num_samples": 1, "digest": "d"}
    report = EvalReport(base_digest="b", metrics=(Metric.model_validate(metric | {"value": None}),))
    report.save(tmp_path / "report.json")
    assert EvalReport.load(tmp_path / "report.json") == report
    with pytest.raises(ValueError, match="finite"):
        Metric.model_validate(metric | {"value": math.nan})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"base_digest": None}, "base_digest"),
        ({"gate_threshold": "0.5"}, "gate_threshold"),
    ],
)
def test_a_damaged_report_is_refused_with_the_field(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(full().model_dump(mode="json") | change), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        EvalReport.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metrics": [{"value": NaN}]}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="is not a report"):
        EvalReport.load(path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="readable file"):
        EvalReport.load(tmp_path / "none.json")


def test_two_metrics_of_one_name_are_refused() -> None:
    metric = Metric(name="m", value=1.0, direction="higher", num_samples=1, digest="d")
    with pytest.raises(ValueError, match="its own name"):
        EvalReport(base_digest="b", metrics=(metric, metric))


def test_an_unknown_metric_is_named_with_its_near_miss() -> None:
    with pytest.raises(DataError, match=r"`gate/auroc`\?"):
        full()["gate/auorc"]


def test_a_report_of_version_1_is_read_and_lacks_what_came_since(tmp_path: Path) -> None:
    old = full().model_dump(mode="json") | {"schema_version": 1}
    for name in ("base_metrics", "gates", "curve", "cost", "provenance", "verdict"):
        del old[name]
    (tmp_path / "report.json").write_text(json.dumps(old), encoding="utf-8")
    assert EvalReport.load(tmp_path / "report.json") == full()


def test_a_report_with_everything_survives_its_file(tmp_path: Path) -> None:
    report = example_report()
    report.save(tmp_path / "report.json")
    assert EvalReport.load(tmp_path / "report.json") == report
    assert report.before("forget_unseen/rouge_l_recall") == 0.972
    assert report.before("gate/auroc") is None
    twice = report.model_dump() | {"base_metrics": report.base_metrics[:1] * 2}
    with pytest.raises(ValueError, match="its own name"):
        EvalReport.model_validate(twice)
