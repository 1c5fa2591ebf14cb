"""A report as one HTML file for people: no script, nothing from outside, for a phone, a desk and paper.

Whatever was written by others (prompts, answers, names, reasons) is escaped, and characters that cannot be seen or that turn the
direction of writing are shown as what they are.
"""

import unicodedata

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grun.evaluation.html.view import view_of
from grun.evaluation.report import EvalReport

__all__ = ["render", "visible"]

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_ALLOWED = "\n\t\u200c\u200d"  # joiners belong into the words of several scripts


def visible(text: str) -> str:
    """Show characters that cannot be seen, or that turn the direction of writing, by their code point."""
    return "".join(
        f"\u27e8U+{ord(c):04X}\u27e9" if c not in _ALLOWED and unicodedata.category(c) in _INVISIBLE else c for c in text
    )


def _finalize(value: object) -> object:
    """What every expression of the template goes through on its way out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render(report: EvalReport) -> str:
    """Return the page of a report."""
    loader = PackageLoader("grun.evaluation.html", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_finalize, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(**view_of(report))
