"""ROUGE recall: how much of the gold answer the model still says (Lin 2004; recall as in TOFU).

    ROUGE-L = LCS(tokens(reference), tokens(generated)) / |tokens(reference)|                         in its order
    ROUGE-1 = sum_w min(count_w(reference), count_w(generated)) / |tokens(reference)|                 in any order

Tokens are the stemmed runs of a-z and 0-9 of `rouge_score`, as in the published tables; a text without any scores 0.
"""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

__all__ = ["rouge_1_recall", "rouge_l_recall"]


@cache
def _scorer(kind: str) -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer  # a second, as it brings all of nltk

    return RougeScorer([kind], use_stemmer=True)


def _recall(kind: str, reference: str, generated: str) -> float:
    return float(_scorer(kind).score(reference, generated)[kind].recall)


def rouge_l_recall(reference: str, generated: str) -> float:
    """Return the share of the reference's tokens in its longest common subsequence with the generated text, in [0, 1]."""
    return _recall("rougeL", reference, generated)


def rouge_1_recall(reference: str, generated: str) -> float:
    """Return the share of the reference's tokens that the generated text also holds, each as often as there, in [0, 1]."""
    return _recall("rouge1", reference, generated)
