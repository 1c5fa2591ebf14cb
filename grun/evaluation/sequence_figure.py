"""The figure of a ledger: what every stack that was served did to each request, to utility and to ordinary prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grun.evaluation.figures import BLUE, GREEN, GREY, VERMILLION

__all__ = ["SequenceStep", "sequence_figure"]


@dataclass(frozen=True)
class SequenceStep:
    """A stack that was served."""

    label: str
    """What changed, for instance `+r2`."""
    forgetting: Mapping[str, float]
    """ROUGE-L recall in unseen wording of each request in the stack that was asked."""
    utility_ratio: float | None
    """Model utility as a share of the base's."""
    false_open_rate: float
    """Share of ordinary prompts that open any gate."""
    false_open_upper95: float
    """Its upper bound at confidence 95 %."""


def sequence_figure(steps: Sequence[SequenceStep], *, max_forget: float, min_utility: float, max_false_open: float) -> Figure:
    """Draw forgetting (each request in grey, the worst in colour), utility ratio and false-open rate, step by step, with their bounds."""
    figure = Figure(figsize=(max(6.4, 0.55 * len(steps) + 2.0), 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Requests in sequence")
    forgetting, utility, false_open = figure.subplots(3, 1, sharex=True)
    for index, request_id in enumerate(dict.fromkeys(name for step in steps for name in step.forgetting)):
        known = [(place, step.forgetting[request_id]) for place, step in enumerate(steps) if request_id in step.forgetting]
        label = "_" if index else "each request"
        forgetting.plot(*zip(*known, strict=True), color=GREY, linewidth=0.8, marker=".", markersize=4, label=label)
    worst = [(place, max(step.forgetting.values())) for place, step in enumerate(steps) if step.forgetting]
    if worst:
        forgetting.plot(
            *zip(*worst, strict=True), color=VERMILLION, marker="o", markersize=5, label="the least forgotten request"
        )
    rated = [(place, step.utility_ratio) for place, step in enumerate(steps) if step.utility_ratio is not None]
    if rated:
        utility.plot(*zip(*rated, strict=True), color=GREEN, marker="s", markersize=5, label="model utility")
    places = range(len(steps))
    false_open.plot(places, [s.false_open_rate for s in steps], color=BLUE, marker="^", markersize=5, label="any gate opens")
    false_open.plot(places, [s.false_open_upper95 for s in steps], color=BLUE, linestyle=":", label="bound at 95 %")
    for axes, bound, title in (
        (forgetting, max_forget, "forget ROUGE-L recall,\nunseen wording (lower is better)"),
        (utility, min_utility, "utility, share of the\nbase's (higher is better)"),
        (false_open, max_false_open, "ordinary prompts that\nopen a gate (lower is better)"),
    ):
        axes.axhline(bound, color="black", linestyle="--", linewidth=1, label=f"bound {bound:g}")
        axes.set_ylabel(title, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.margins(y=0.12)
        axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    false_open.set_xticks(list(places), [step.label for step in steps], rotation=45 if len(steps) > 8 else 0)
    false_open.set_xlabel("stack that was served (+ request added, \u2212 revoked)", fontsize="medium")
    return figure
