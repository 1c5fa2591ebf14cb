"""The page of a report in a real browser, on a phone and at a desk: everything is there, nothing overflows, all of it can be read."""

from typing import Any

import pytest

from grun.evaluation.html import render
from grun.evaluation.report import EvalReport
from tests.evaluation.browser import Frame, measure
from tests.evaluation.example_report import example_report

PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one browser saw of all pages: opening it is what takes long."""
    full, empty = render(example_report()), render(EvalReport(base_digest="b" * 64, metrics=()))
    frames = {
        "phone": Frame(full, *PHONE),
        "desk": Frame(full, *DESK),
        "small-phone": Frame(full, 320, 568),
        "dark": Frame(full, *PHONE, dark=True),
        "empty-phone": Frame(empty, *PHONE),
        "empty-desk": Frame(empty, *DESK),
    }
    return measure(frames, tmp_path_factory.mktemp("browser"))


@pytest.mark.parametrize(("name", "width"), [("phone", 390), ("desk", 1280), ("small-phone", 320)])
def test_verdict_figures_and_tables_are_there_and_nothing_overflows(
    seen: dict[str, dict[str, Any]], name: str, width: int
) -> None:
    page, report = seen[name], example_report()
    assert page["innerWidth"] == width
    assert page["scrollWidth"] <= page["clientWidth"]
    assert page["overflowing"] == []
    assert report.verdict is not None
    assert page["status"] == "Forgotten, with a reservation"
    assert page["sentence"] == report.verdict.sentence
    # each figure is drawn in two widths, one of which shows
    assert page["figures"] == [1, 1, 1]
    # before and after; attacks by prompts and on the model; certificate and its thresholds; gates; curve; all numbers
    assert page["tables"] == [7, 12, 2, 2, 3, 9, 10, len(report.metrics)]
    # the prompt of the worst leak tries to name the page
    assert page["title"] == "Unlearning report: art-17-2026-0042"


@pytest.mark.parametrize("name", ["phone", "desk"])
def test_labels_of_figures_are_whole_apart_and_large_enough(seen: dict[str, dict[str, Any]], name: str) -> None:
    assert seen[name]["clippedLabels"] == []
    assert seen[name]["collidingLabels"] == []
    assert seen[name]["smallestLabel"] >= 11


@pytest.mark.parametrize(("name", "dark"), [("phone", False), ("desk", False), ("dark", True)])
def test_contrast_is_enough_to_read(seen: dict[str, dict[str, Any]], name: str, dark: bool) -> None:
    assert seen[name]["dark"] is dark
    assert seen[name]["low"] == []


@pytest.mark.parametrize("name", ["empty-phone", "empty-desk"])
def test_a_report_of_nothing_still_says_so(seen: dict[str, dict[str, Any]], name: str) -> None:
    assert seen[name]["overflowing"] == []
    assert seen[name]["figures"] == []
    assert seen[name]["tables"] == []
    assert seen[name]["status"] == "Undecided"
