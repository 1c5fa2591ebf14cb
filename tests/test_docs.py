"""`docs/reading-a-report.md` explains every family of numbers and every heading of a report's page."""

import re
from pathlib import Path
from typing import get_args

import pytest

from grun.evaluation.html import render
from grun.evaluation.html.explained import FAMILIES, family_of
from grun.evaluation.report import Role
from grun.evaluation.scores import RowScore
from grun.evaluation.summary import ScoredSet, summarise
from tests.evaluation.example_report import example_report

TEXT = (Path(__file__).parents[1] / "docs" / "reading-a-report.md").read_text(encoding="utf-8")


def scored(role: Role) -> ScoredSet:
    """Rows with everything in them."""
    rows = [
        RowScore(
            digest=f"{role}{i}",
            set_name=role,
            prompt="question",
            num_answer_tokens=2,
            answer_nll_nats=1.0,
            paraphrased_answer_nll_mean=0.5,
            wrong_nll_means=(1.0, 2.0),
            generated="said",
            rouge_l_recall=0.5,
            rouge_1_recall=0.5,
            exact_memorization=0.5,
            extraction_strength=0.5,
            zlib_bytes=20,
            min_k_nats=1.0,
            min_k_plus_plus=0.5,
            gate_values=(0.1 * i, 0.2),
            opened=False,
        )
        for i in range(3)
    ]
    return ScoredSet(role, role, "d", rows)


def measured_families() -> set[str]:
    """Families of all metrics that rows with everything in them give, and of those that scoring adds to them."""
    sets = [scored(role) for role in get_args(Role)]
    rows = {s.name: s.rows for s in sets}
    report = summarise(sets, base_digest="b", base_rows=rows, retain_only_rows=rows, layers=(1, 2), threshold=0.5)
    names = [*(metric.name for metric in report.metrics), "multiple_choice/accuracy", "gate/record_open_upper"]
    return {family_of(name) for name in names}


def test_every_family_of_metrics_has_plain_words_on_the_page() -> None:
    assert measured_families() - FAMILIES.keys() == set()


@pytest.mark.parametrize("family", sorted(measured_families() | FAMILIES.keys()))
def test_every_family_of_metrics_is_explained(family: str) -> None:
    assert f"`{family}`" in TEXT


def test_every_heading_of_the_page_is_explained() -> None:
    headings = re.findall(r"<h[23][^>]*>([^<]+)", render(example_report()))
    assert len(headings) > 15
    explained = {line.lstrip("# ").strip().lower() for line in TEXT.splitlines() if line.startswith("#")}
    bold = {word.lower() for word in re.findall(r"\*\*([^*]+)\*\*", TEXT.replace("\n", " "))}
    first_column = {row.split("|")[1].strip().lower() for row in TEXT.splitlines() if row.startswith("|")}
    known = explained | bold | first_column
    assert [heading for heading in headings if heading.strip().lower() not in known] == []


@pytest.mark.parametrize("status", ["forgotten", "not forgotten", "damaged", "undecided"])
def test_every_verdict_is_explained(status: str) -> None:
    assert f"\n| {status} |" in TEXT
