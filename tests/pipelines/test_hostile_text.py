"""Texts of others on a terminal, in a log and on a page: shown whole, and never obeyed."""

import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from html.parser import HTMLParser
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grun.config import Recipe
from grun.evaluation.attacks import Leak
from grun.evaluation.html import render
from grun.evaluation.report import EvalReport
from grun.reading import visible
from pipelines import console
from pipelines.running import _status_of
from pipelines.sweep_outcome import SweepOutcome, SweepPoint
from pipelines.sweep_record import TrialRecord
from pipelines.sweep_report import _render
from tests.evaluation.example_report import digest, example_report
from tune_spaces import Space

SEQUENCES = (
    "\x1b[31mred",
    "\x1b]0;a title\x07",
    "\x1b]52;c;aGk=\x07",  # writes to the clipboard
    "\x9b2J",
    "\x1b[2J\x1b[H",
    "\b\b\b",
    "\rerror: none",
    "\u202egnp.exe",
    "\u2066",
    "\x00",
    "\ud800",
    "</style><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}",
    "[red]",
    ":bomb:",
    "&lt;",
    '" onload="x',
    "]]>",
    "<!--",
)
texts = st.lists(st.one_of(st.sampled_from(SEQUENCES), st.characters(), st.text(max_size=5)), max_size=8).map("".join)
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What rich itself writes on a terminal; no text of others begins with its escape."""


def squeezed(text: str) -> str:
    """Without the white space and frame that lines are broken with."""
    return re.sub(r"[\s│╭╮╰╯─]+", "", text)


def said(show: Callable[[], object]) -> str:
    out = io.StringIO()
    with redirect_stderr(out), redirect_stdout(out):
        show()
    return out.getvalue()


WAYS: dict[str, Callable[[str], object]] = {
    "note": console.note,
    "error": console.error,
    "result": console.result,
    "defect": console.defect,
    "summary": lambda text: console.summary("title", {"name": text}, ["go on"]),
    "title": lambda text: console.summary(text, {}, []),
    "name": lambda text: console.summary("title", {text: "value"}, []),
    "step": lambda text: console.summary("title", {}, [text]),
}


@pytest.mark.parametrize("way", WAYS)
@given(text=texts)
def test_nothing_steers_a_log(way: str, text: str) -> None:
    shown = said(lambda: WAYS[way](text))
    assert not STEERS.search(shown)
    assert squeezed(visible(text)) in squeezed(shown)


@pytest.mark.parametrize("way", WAYS)
@given(text=texts)
def test_nothing_steers_a_terminal(way: str, text: str) -> None:
    # a console keeps the width that `COLUMNS` had when it was made, and titles are cut to it
    with patch.dict("os.environ", {"FORCE_COLOR": "1", "TERM": "xterm"}), patch.object(console._stdout, "_width", 200):
        shown = COLOURS.sub("", said(lambda: WAYS[way](text)))
    assert not STEERS.search(shown)
    assert squeezed(shown).count("\u27e8U+001B\u27e9") == text.count("\x1b")  # a line may end within one


@given(text=texts)
def test_nothing_steers_through_a_defect(text: str) -> None:
    def fail() -> int:
        raise RuntimeError(text)

    assert not STEERS.search(said(lambda: _status_of(fail)))


def test_a_value_of_several_lines_cannot_pretend_to_be_a_step() -> None:
    shown = said(lambda: console.summary("title", {"reason": "one\nnext: rm -rf /"}, ["go on"]))
    assert [line for line in shown.splitlines() if line.startswith("next:")] == ["next: go on"]


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(" ".join([tag, *(name for name, _value in attrs)]))

    def handle_data(self, data: str) -> None:
        self.text += data


@cache
def tags_of(page: Callable[[str], str]) -> list[str]:
    return Page(page("a b")).tags


def report_with(text: str) -> EvalReport:
    """A report without figures, which take their time and hold no text of others, with a text wherever there is room for one."""
    report = example_report()
    assert report.provenance is not None
    fields = ("request_id", "request_reason", "base_name", "base_revision", "recipe_name", "objective", "mlflow_run_id")
    leak = Leak(digest=digest("x"), rouge_l_recall=1.0, prompt=text, answer=text, said=text)
    return report.model_copy(
        update={
            "metrics": (),
            "gates": (),
            "curve": (),
            "provenance": report.provenance.model_copy(update=dict.fromkeys(fields, text)),
            "attacks": (report.attacks[0].model_copy(update={"name": text, "description": text, "worst": leak}),),
        }
    )


def report_page(text: str) -> str:
    return render(report_with(text))


@settings(max_examples=25)
@given(text=texts)
def test_nothing_becomes_a_part_of_the_report(text: str) -> None:
    page = report_page(f"a b{text}")  # with a space, or a long word is taken for a digest
    assert not STEERS.search(page)
    assert Page(page).tags == tags_of(report_page)
    assert Page(page).text.count(f"a b{visible(text)}") >= 5


def sweep_page(text: str) -> str:
    """The report of a sweep of one trial, with a text wherever there is room for one."""
    trial = TrialRecord(trial_id="t", started=0.0, point={}).model_copy(update={"point": {"a.b": text}, "failure": text})
    point = SweepPoint(trial, 0.5, example_report(), score=0.0)
    recipe = Recipe().model_copy(update={"name": text})
    return _render(recipe, Space("s", text, {}), SweepOutcome((trial,), (point,), (point,), point), {})


@settings(max_examples=25)
@given(text=texts)
def test_nothing_becomes_a_part_of_the_report_of_a_sweep(text: str) -> None:
    page = sweep_page(f"a b{text}")
    assert not STEERS.search(page)
    assert Page(page).tags == tags_of(sweep_page)
    assert Page(page).text.count(f"a b{visible(text)}") >= 3
