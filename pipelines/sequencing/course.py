"""The course of a ledger: what was measured after each step, from the ledger's own entries."""

from matplotlib.figure import Figure

from grun.config import PromotionConfig
from grun.evaluation.sequence_figure import SequenceStep, sequence_figure
from grun.ledger import Ledger

__all__ = ["course_figure", "course_of"]

_SIGNS = {"promoted": "+", "reinstated": "+", "revoked": "\u2212"}
"""What happened to a request, by the action that its stack was served with."""


def course_of(ledger: Ledger) -> list[SequenceStep]:
    """The stacks that were served, one after another."""
    steps = []
    for entry in ledger.entries:
        numbers = entry.details.evaluation
        if entry.action not in _SIGNS or not numbers:
            continue
        steps.append(
            SequenceStep(
                label=f"{_SIGNS[entry.action]}{entry.request_id}",
                forgetting={
                    member: numbers[key]
                    for member in entry.details.members
                    if (key := f"{member}/forget_unseen/rouge_l_recall") in numbers
                },
                utility_ratio=numbers.get("model_utility_ratio"),
                false_open_rate=numbers["gate/false_open_rate"],
                false_open_upper95=numbers["gate/false_open_rate_upper95"],
            )
        )
    return steps


def course_figure(ledger: Ledger, policy: PromotionConfig) -> Figure:
    """Forgetting, utility and false opens over the stacks that were served, with the bounds of the policy."""
    return sequence_figure(
        course_of(ledger),
        max_forget=policy.max_forget_rouge,
        min_utility=policy.min_utility_ratio,
        max_false_open=policy.max_false_open_rate,
    )
