"""A report as one HTML file for people: no script, nothing from outside, for a phone, a desk and paper.

Whatever was written by others (prompts, answers, names, reasons) is escaped, and characters that cannot be seen or that turn the
direction of writing are shown as what they are.
"""

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grun.evaluation.html.view import view_of
from grun.evaluation.report import EvalReport
from grun.reading import visible

__all__ = ["finalize", "render"]


def finalize(value: object) -> object:
    """What every expression of the template goes through on its way out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render(report: EvalReport) -> str:
    """Return the page of a report."""
    loader = PackageLoader("grun.evaluation.html", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(**view_of(report))
