"""Metrics in plain language: a label and a sentence for every family of metric names."""

import re
from dataclasses import dataclass

__all__ = ["FAMILIES", "OWN_PARTS", "SETS", "Explained", "explained", "family_of", "label_of"]

OWN_PARTS = ("gate", "mia", "multiple_choice")
"""First parts of metric names that name no set of prompts."""

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
    "nonmembers": "never taught to any model",
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
    **{
        f"truth_ratio_{name}": Explained(
            f"Truth ratio (OpenUnlearning, {text})",
            "The same comparison by a formula of the OpenUnlearning benchmark.",
            is_share=False,
        )
        for name, text in (("closer_to_1_better", "closer to 1"), ("true_better", "true better"), ("prob_mean", "mean"))
    },
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
    "rouge_1_recall": Explained("Words of the answer said", "How many of the right answer's words the model says, in any order."),
    "exact_memorization": Explained(
        "Recited word for word", "Share of the answer's next words that the model would write itself."
    ),
    "extraction_strength": Explained("Extractable", "Share of the end of the answer that the model completes by itself."),
    "forget_quality_open_unlearning": Explained(
        "Forget quality (OpenUnlearning)", "Forget quality by the formula of the OpenUnlearning benchmark.", is_share=False
    ),
    "forget_quality_open_unlearning_ks": Explained(
        "Largest gap (OpenUnlearning)", "The largest distance by that formula.", is_share=False
    ),
    "forget_quality_open_unlearning_log10_p": Explained(
        "Forget quality (OpenUnlearning), as a power of ten", "The same chance on the log scale.", is_share=False
    ),
    **{
        f"mia/{name}": Explained(
            f"Membership guessed ({text})", "How well an outsider can tell that the data were trained on.", is_share=False
        )
        for name, text in (
            ("loss_auc", "by loss"),
            ("zlib_auc", "by loss against compressed size"),
            ("min_k_auc", "by the least likely words"),
            ("min_k_plus_plus_auc", "by the least likely words, standardised"),
            ("reference_auc", "against a model that never saw them"),
            ("min_k_auc_retain_only", "the same on a model that never saw them"),
        )
    },
    "privleak": Explained(
        "Privacy leak", "How far membership can be guessed beyond a model that never saw the data; 0 is ideal.", is_share=False
    ),
    "multiple_choice/accuracy": Explained("Multiple choice right", "Share of the questions of which the right option is picked."),
    "gate/record_open_upper": Explained(
        "Ordinary records touched, at most",
        "How far a certificate would hold here: the bound on records any wording of which opens a gate.",
    ),
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
    return _BLOCK.sub("", name if head in OWN_PARTS else quantity)


def explained(name: str) -> Explained:
    """What a metric is; one that is not in the table keeps its name."""
    family = family_of(name)
    return FAMILIES.get(family, Explained(family, "", is_share=False))


def label_of(name: str) -> str:
    """A metric's label with the set and the block that it is about."""
    head, _, _quantity = name.rpartition("/")
    block = _BLOCK.search(name)
    about = [SETS.get(head, head)] if head and head not in OWN_PARTS else []
    about += [f"block {block[1]}"] if block else []
    label = explained(name).label
    return f"{label} ({', '.join(about)})" if about else label
