"""The page of a report: nothing of others' becomes markup, nothing comes from outside, and what is missing is said."""

import re
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from grun.evaluation.attacks import AttackResult
from grun.evaluation.html import render
from grun.evaluation.html.explained import FAMILIES, family_of, label_of
from grun.evaluation.report import EvalReport
from grun.reading import visible
from tests.evaluation.example_report import LEAK, digest, example_report, metric


class _Reader(HTMLParser):
    """Tags with their attributes, in order, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag in ("dt", "dd", "th", "td") else ""
        if tag not in ("meta", "path", "use"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "path", "use"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@cache
def full_page() -> str:
    """The page of a report with everything."""
    return render(example_report())


def words(page: str) -> str:
    return " ".join(_Reader(page).text.split())


def test_tags_are_closed_in_order_and_ids_are_unique() -> None:
    read = _Reader(full_page())
    assert read.open == []
    ids = [attributes["id"] for _tag, attributes in read.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    wanted = re.findall(r'(?:href="#|url\(#)([^")]+)', full_page())
    assert set(wanted) <= set(ids)


def test_nothing_is_run_and_nothing_comes_from_outside() -> None:
    page = full_page()
    tags = {tag for tag, _attributes in _Reader(page).tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form", "a", "audio", "video", "embed"}
    attributes = {name: value for _tag, found in _Reader(page).tags for name, value in found.items()}
    assert not [name for name in attributes if name.startswith("on") or name == "src"]
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", page)


def test_text_of_others_is_shown_and_never_obeyed() -> None:
    page = full_page()
    text = _Reader(page).text
    assert LEAK.prompt is not None
    assert LEAK.prompt in text
    assert "Erasure asked for by <b>the person</b> & their counsel" in text
    # what turns the direction of writing, or cannot be seen, is shown as what it is
    assert "\u27e8U+202E\u27e9yb the sea\u27e8U+202C\u27e9" in text
    assert "a bell\u27e8U+0007\u27e9, a null\u27e8U+0000\u27e9, a zero-width\u27e8U+200B\u27e9space" in text
    assert not set(page) & set("\u202e\u202c\x07\x00\u200b")
    page.encode("utf-8")


def test_visible_keeps_what_writing_needs() -> None:
    assert visible("a\nb\tc \u00e9 \u0646\u0627\u0645\u0647\u200c\u0627\u06cc \U0001f600") == (
        "a\nb\tc \u00e9 \u0646\u0627\u0645\u0647\u200c\u0627\u06cc \U0001f600"
    )
    assert visible("\ud800\u2066") == "\u27e8U+D800\u27e9\u27e8U+2066\u27e9"


def test_hostile_names_stay_text_wherever_they_come_from() -> None:
    report = example_report()
    hostile = "</style><script>alert(1)</script>"
    attack = report.attacks[0].model_copy(update={"name": hostile, "description": hostile, "worst": None})
    assert report.provenance is not None
    provenance = report.provenance.model_copy(
        update=dict.fromkeys(("request_id", "base_name", "recipe_name", "objective"), hostile)
    )
    metrics = (*report.metrics, metric(f"{hostile}/probability", 0.5), metric(f"set/{hostile}", 0.5))
    page = render(report.model_copy(update={"attacks": (attack,), "provenance": provenance, "metrics": metrics}))
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert words(page).count(hostile) >= 6


def test_the_worst_leak_is_quoted_only_where_the_report_holds_its_text() -> None:
    report = example_report()
    assert "Sensitive: this is text that was to be forgotten" in words(render(report))
    silent = LEAK.model_copy(update={"prompt": None, "answer": None, "said": None})
    attacks = tuple(a.model_copy(update={"worst": silent}) if a.worst == LEAK else a for a in report.attacks)
    text = words(render(report.model_copy(update={"attacks": attacks})))
    assert "Sensitive" not in text
    assert "Its text is left out, as forget text is not allowed in reports here." in text
    assert "By completion/statement: 42 % of the answer was said." in text
    assert LEAK.digest in text


def test_headings_are_in_order() -> None:
    levels = [int(tag[1]) for tag, _attributes in _Reader(full_page()).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_figures_and_tables_say_what_they_are() -> None:
    read = _Reader(full_page())
    tags = [tag for tag, _attributes in read.tags]
    assert tags.count("figcaption") == tags.count("figure") == 3
    assert tags.count("caption") == tags.count("table") == 8
    labels = [attributes.get("aria-label") for tag, attributes in read.tags if tag == "svg"]
    assert len(labels) == 6
    assert all(labels)
    assert "forgotten answers, unseen words 97.2 % before and 4.1 % after" in str(labels[0])
    assert all("scope" in attributes for tag, attributes in read.tags if tag == "th")


def test_the_page_has_the_numbers_of_the_report() -> None:
    text = words(full_page())
    for shown in (
        "97.2 %",
        "4.1 %",
        "3.2 \u00d7 10\u207b\u2075",
        "0 of 82",
        "0.9123",
        "48.3 MB",
        "14.2 kB",
        "93 s",
        "3,412,480",
        "0.091 %",
        "grun-art-17-2026-0042 version 3",
        "forget npo, retain kl",
        digest("adapter"),
        digest("holdout"),
    ):
        assert shown in text, shown


def test_the_same_report_gives_the_same_page() -> None:
    assert render(example_report()) == full_page()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attacks": ()}, "No attack was tried."),
        ({"certificate": None}, "There is no certificate: nothing is promised"),
        ({"gates": ()}, "There are no gate values in this report: the adapter has no gates, or their values were not recorded."),
        ({"gates": (), "adapter_digest": None}, "the base alone has no gates"),
        ({"gate_threshold": None}, "These gates are soft: without a threshold none is ever fully closed"),
        ({"curve": ()}, "Other thresholds were not tried."),
        ({"cost": None}, "Training time not known"),
        ({"provenance": None}, "A request that is not named"),
        ({"verdict": None}, "No verdict was given: this report was not judged by a policy."),
        ({"metrics": ()}, "None of the numbers that are compared here was measured."),
        ({"base_metrics": ()}, "\N{EN DASH}"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, object], said: str) -> None:
    assert said not in words(full_page()) or said == "\N{EN DASH}"
    assert said in words(render(example_report().model_copy(update=changes)))


def test_a_model_that_never_saw_the_data_is_missed() -> None:
    report = example_report()
    metrics = tuple(m for m in report.metrics if not m.name.startswith("forget_quality"))
    assert "it needs a model that never saw the data" in words(render(report.model_copy(update={"metrics": metrics})))


def test_a_null_and_an_unknown_metric_are_shown() -> None:
    report = EvalReport(base_digest="b", metrics=(metric("model_utility_ratio", None), metric("forget/something_new", 0.12345)))
    text = words(render(report))
    assert "not known" in text
    assert "something_new (to forget, as trained)" in text
    assert "0.1235" in text


def test_an_attack_on_the_model_alone_has_its_own_table() -> None:
    attack = AttackResult(name="m", family="model", description="d.", target="model", num_prompts=3, forget_rouge_l_recall=1.0)
    text = words(render(EvalReport(base_digest="b", metrics=(), attacks=(attack,))))
    assert "Attacks on the model" in text
    assert "Attacks by prompts" not in text
    assert "No single answer is recorded as the worst." in text


def test_families_and_labels() -> None:
    assert family_of("gate/auroc_layer_12") == "gate/auroc"
    assert family_of("forget_unseen/rouge_l_recall") == "rouge_l_recall"
    assert family_of("model_utility") == "model_utility"
    assert label_of("gate/auroc_layer_12") == "Separation (block 12)"
    assert label_of("holdout/probability") == "Probability of the answer (ordinary, held out)"
    assert {family_of(m.name) for m in example_report().metrics} <= FAMILIES.keys()
