"""The report of a stack: who opens what first, what it promises as a whole, and what of it is recorded."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.errors import DataError
from grun.evaluation.gate_separation import clopper_pearson_upper
from grun.evaluation.stack_report import StackReport, growths
from tests.evaluation.example_stack import certificate, member, stack_report


def test_growth_counts_a_prompt_for_the_first_member_that_it_opens() -> None:
    opened = [(True, True, False), (False, True, True), (False, False, False), (False, True, False), (True, False, True)]
    assert growths(opened) == (2, 2, 0)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1))
def test_growth_adds_up_to_the_prompts_that_open_anything(opened: list[tuple[bool, bool, bool]]) -> None:
    assert sum(growths(opened)) == sum(map(any, opened))
    assert growths(opened)[0] == sum(row[0] for row in opened)


def test_the_stack_as_a_whole() -> None:
    report = stack_report()
    assert (report.num_open, report.false_open_rate) == (3, 0.01)
    assert report.false_open_upper95 == clopper_pearson_upper(3, 300)
    assert report.metrics() == {
        "forget_unseen/rouge_l_recall_most": 0.02,
        "model_utility_ratio": 0.99,
        "gate/false_open_rate": 0.01,
        "gate/false_open_rate_upper95": clopper_pearson_upper(3, 300),
        "stack/num_requests": 3.0,
        **{f"r{n}/forget_unseen/rouge_l_recall": 0.02 for n in (1, 2, 3)},
        **{f"r{n}/gate/forget_open_rate": 1.0 for n in (1, 2, 3)},
        **{f"r{n}/gate/false_open_rate": opens / 300 for n, opens in ((1, 2), (2, 3), (3, 0))},
    }


def test_certificates_add_up_by_the_union_bound() -> None:
    report = stack_report()
    assert report.union == pytest.approx((0.09, 0.85))
    assert "At most 0.09 of ordinary prompts are touched by any of 3 adapters (confidence 0.85)" in report.union_sentence
    many = stack_report(*(member(f"r{n}") for n in range(40)))
    assert many.union == (1.0, 0.0)
    assert many.union_sentence.startswith("No promise")
    one = stack_report(member("r1"))
    assert one.union_sentence == certificate().sentence


def test_one_certificate_that_does_not_hold_leaves_no_promise() -> None:
    report = stack_report(member("r1"), member("r2", certificate=certificate(num_open=1)), member("r3", certificate=None))
    assert report.union is None
    assert report.union_sentence == "No promise for the whole stack: r2, r3 without a certificate that holds."


def test_a_request_whose_text_is_purged_has_no_numbers_and_says_so() -> None:
    purged = member("r2", num_prompts=0, rouge_before=None, rouge_after=None, own_open_rate=None, opens=1, growth=1)
    report = stack_report(member("r1", rouge_after=0.1), purged)
    assert not {name for name in report.metrics() if name.startswith("r2/forget")}
    assert report.metrics()["forget_unseen/rouge_l_recall_most"] == 0.1
    assert report.rows()["r2"] == "text purged, so not asked; opens for 1 of 300 ordinary prompts, 1 of them new"


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    report = stack_report()
    report.save(tmp_path / "report.json")
    assert StackReport.load(tmp_path / "report.json") == report
    (tmp_path / "report.json").write_text('{"schema_version": 1}')
    with pytest.raises(DataError, match="not a report of a stack"):
        StackReport.load(tmp_path / "report.json")
    with pytest.raises(DataError, match="readable file"):
        StackReport.load(tmp_path / "missing.json")
