"""`docs/reading-a-report.md` explains every family of numbers and every heading of a report's page."""

import re
from pathlib import Path

import pytest

from grun.evaluation.html import render
from grun.evaluation.html.explained import FAMILIES, family_of
from grun.evaluation.report import Role
from grun.evaluation.scores import RowScore
from grun.evaluation.summary import ScoredSet, summarise
from tests.evaluation.example_report import example_report

TEXT = (Path(__file__).parents[1] / "docs" / "reading-a-report.md").read_text(encoding="utf-8")


def scored(role: Role) -> ScoredSet:
    rows = [
        RowScore(f"{role}{i}", role, "question", 2, 1.0, 0.5, (1.0, 2.0), "said", 0.5, (0.1 * i, 0.2), False) for i in range(3)
    ]
    return ScoredSet(role, role, "d", rows)


def measured_families() -> set[str]:
    """Families of all metrics that rows with everything in them give."""
    sets = [scored("forget"), scored("forget_unseen"), scored("retain"), scored("utility"), scored("holdout")]
    rows = {s.name: s.rows for s in sets}
    report = summarise(sets, base_digest="b", base_rows=rows, retain_only_rows=rows, layers=(1, 2), threshold=0.5)
    return {family_of(metric.name) for metric in report.metrics}


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
