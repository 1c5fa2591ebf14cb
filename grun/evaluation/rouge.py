"""ROUGE-L recall: how much of the gold answer the model still says, in its order (Lin 2004; recall as in TOFU).

    recall = LCS(tokens(reference), tokens(generated)) / |tokens(reference)|

Tokens are the stemmed runs of a-z and 0-9 of `rouge_score`, as in the published tables; a text without any scores 0.
"""

from functools import cache

from rouge_score.rouge_scorer import RougeScorer

__all__ = ["rouge_l_recall"]


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_recall(reference: str, generated: str) -> float:
    """Return the share of the reference's tokens in its longest common subsequence with the generated text, in [0, 1]."""
    return float(_scorer().score(reference, generated)["rougeL"].recall)
