from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grun.objectives import AnswerTokens, ObjectiveInputs, Totals

Golden = Callable[..., ObjectiveInputs]

LOGITS = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, -1], [0.5, 0.5, 0, 0]])
REFERENCE = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
LABELS = torch.tensor([0, 1, 3])


def nll(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS, reduction="none")


@pytest.fixture
def golden() -> Golden:
    """The worked example: three answer tokens over four words, on both sides, and three gates a row."""

    def build(row: tuple[int, ...] = (0, 0, 0), **fields: Tensor) -> ObjectiveInputs:
        values = {
            "nll": nll(LOGITS),
            "nll_ref": nll(REFERENCE),
            "logits": LOGITS,
            "logits_ref": REFERENCE,
            "targets": LABELS,
            **fields,
        }
        rows = max(row) + 1
        tokens = AnswerTokens(row=torch.tensor(row), num_rows=rows, **values)
        gates_forget = torch.tensor([0.9, 0.8, 0.6]).logit().expand(rows, 3)
        gates_retain = torch.tensor([0.1, 0.3, 0.2]).logit().expand(rows, 3)
        return ObjectiveInputs(tokens, tokens, gates_forget, gates_retain, Totals(rows, len(row), rows, len(row)))

    return build
