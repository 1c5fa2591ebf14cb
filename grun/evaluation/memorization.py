"""How much of an answer a model would still complete: exact memorization and extraction strength, as in open-unlearning.

    right_t             = (argmax_v p(v | prompt, answer_<t) == answer_t)          the model is given the true tokens before t
    exact memorization  = mean_t right_t                                          (Tirumala et al. 2022)
    extraction strength = 1 - k/n, k the least number of given tokens after which all of right_k .. right_n-1 hold
                                                                                  (Carlini et al. 2021)

n tokens count: those of the answer without the end of text, which says nothing about what is known. Facts checked in the
source of open-unlearning: there k stops at n - 1, so that an answer whose last token is wrong still scores 1/n and not 0.
That is kept, as numbers have to compare.
"""

from collections.abc import Sequence

from grun.errors import DataError

__all__ = ["exact_memorization", "extraction_strength"]


def exact_memorization(right: Sequence[bool]) -> float:
    """Return the share of answer tokens, the end of text left out, that are the model's first choice.

    Raises:
        DataError: there is no token.
    """
    _check(right)
    return sum(right) / len(right)


def extraction_strength(right: Sequence[bool]) -> float:
    """Return the share of the answer that the model completes by itself, at least 1/n.

    Args:
        right: of each of the answer's n tokens, the end of text left out, whether it is the model's first choice.

    Raises:
        DataError: there is no token.
    """
    _check(right)
    last_wrong = max((index for index, is_right in enumerate(right) if not is_right), default=-1)
    return 1 - min(last_wrong + 1, len(right) - 1) / len(right)


def _check(right: Sequence[bool]) -> None:
    if not right:
        raise DataError("memorization is a share of answer tokens, got none beside the end of text; mend or drop the record")
