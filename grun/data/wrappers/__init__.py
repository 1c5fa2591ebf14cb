"""Wrappers: other forms of the same question. Two tables that share nothing: what training may see, and what evaluation tries.

Which member of a family a question gets is drawn from (seed, record digest, index) alone: the same on every machine,
and in whatever order records come.
"""

from random import Random

from grun.data.wrappers.asked import Asked, Family, Others, Table, Wrapper
from grun.data.wrappers.evaluation import EVALUATION_FAMILIES
from grun.data.wrappers.training import TRAINING_FAMILIES

__all__ = ["EVALUATION_FAMILIES", "TRAINING_FAMILIES", "Asked", "Family", "Others", "Table", "Wrapper", "wrap"]


def wrap(family: Family, question: str, *, seed: int, digest: str, index: int, others: Others = ()) -> Asked:
    """Draw a member of a family and put it around a question.

    Args:
        digest: of the question's record.
        index: another one gives another draw.
        others: ordinary questions that the wrapper may quote.
    """
    return family.wrap(question, Random(f"wrap {seed} {digest} {index} {family.description}"), others)
