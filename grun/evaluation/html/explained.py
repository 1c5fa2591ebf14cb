"""Metrics in plain language: a label and a sentence for every family of metric names."""

import re
from dataclasses import dataclass

__all__ = ["FAMILIES", "SETS", "Explained", "explained", "family_of", "label_of"]

_BLOCK = re.compile(r"_layer_(\d+)$")


@dataclass(frozen=True)
class Explained:
    """What a family of metrics is."""

    label: str
    text: str
    """One sentence for somebody who decides but does not code."""
    is_share: bool = True
    """Whether it is shown as per cent."""


SETS = {
    "forget": "to forget, as trained",
    "forget_unseen": "to forget, unseen words",
    "retain": "to keep",
    "holdout": "ordinary, held out",
    "gate": "gate",
}
"""What the sets are called; any other is kept under its own name."""

FAMILIES = {
    "rouge_l_recall": Explained(
        "Answer said", "How much of the right answer the model says by itself, word by word and in order."
    ),
    "probability": Explained(
        "Probability of the answer", "How likely the model finds the right answer when it is put before it."
    ),
    "probability_normalised": Explained("Right against wrong", "The right answer's probability among right and wrong ones."),
    "truth_ratio_grun": Explained(
        "Truth ratio (GRUN)", "How much the right answer stands out against wrong ones, by GRUN's formula.", is_share=False
    ),
    "truth_ratio_tofu_arithmetic": Explained(
        "Truth ratio (TOFU, arithmetic)", "How close wrong answers come to the right one, averaged plainly.", is_share=False
    ),
    "truth_ratio_tofu_geometric": Explained(
        "Truth ratio (TOFU, geometric)",
        "How close wrong answers come to the right one, averaged on the log scale.",
        is_share=False,
    ),
    "truth_ratio_open_unlearning": Explained(
        "Truth ratio (OpenUnlearning)", "The same comparison by the formula of the OpenUnlearning benchmark.", is_share=False
    ),
    "model_utility": Explained("Usefulness", "One number for how well everything that is kept is answered."),
    "model_utility_ratio": Explained("Usefulness kept", "The usefulness as a share of what it was before."),
    "forget_quality": Explained(
        "Forget quality",
        "The chance of so large a difference to a model that never saw the data, if there were none.",
        is_share=False,
    ),
    "forget_quality_ks": Explained(
        "Largest gap to such a model", "The largest distance between the two models' truth ratios.", is_share=False
    ),
    "forget_quality_log10_p": Explained("Forget quality, as a power of ten", "The same chance on the log scale.", is_share=False),
    "gate/auroc": Explained(
        "Separation", "The chance that a forget prompt opens the gate further than an ordinary one; 1 is perfect.", is_share=False
    ),
    "gate/false_open_rate": Explained("Ordinary prompts touched", "Held-out ordinary prompts at which a gate opens."),
    "gate/false_open_rate_upper95": Explained(
        "Ordinary prompts touched, at most",
        "The same share with the luck of the sample taken off: exceeded by chance one time in 20.",
    ),
    "gate/forget_open_rate": Explained("Forget prompts caught", "Forget prompts in unseen words at which a gate opens."),
}
"""Label and sentence by family."""


def family_of(name: str) -> str:
    """The family of a metric name: without the set that it was measured on, and without the block."""
    head, _, quantity = name.rpartition("/")
    return _BLOCK.sub("", name) if head == "gate" else _BLOCK.sub("", quantity)


def explained(name: str) -> Explained:
    """What a metric is; one that is not in the table keeps its name."""
    family = family_of(name)
    return FAMILIES.get(family, Explained(family, "", is_share=False))


def label_of(name: str) -> str:
    """A metric's label with the set and the block that it is about."""
    head, _, _quantity = name.rpartition("/")
    block = _BLOCK.search(name)
    about = [SETS.get(head, head)] if head and head != "gate" else []
    about += [f"block {block[1]}"] if block else []
    label = explained(name).label
    return f"{label} ({', '.join(about)})" if about else label
