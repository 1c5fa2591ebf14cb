"""Score a stack, running the model as little as possible: a prompt that opens no gate of any member has the base's own row."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grun.evaluation.evaluate import Scorer
from grun.evaluation.scores import RowScore
from grun.evaluation.sets import EvalSet
from grun.interventions import AdapterStack

__all__ = ["BaseRows", "StackScorer"]

BaseRows = Mapping[tuple[str, str, str], RowScore]
"""What the base alone says, by set, record digest and wording."""


@dataclass(frozen=True)
class StackScorer:
    """Scores one stack, its members at their own thresholds."""

    scorer: Scorer
    stack: AdapterStack
    base_rows: BaseRows

    def opened(self, evaluated: EvalSet) -> Tensor:
        """Which members have an open gate (prompts, members), every edit held back; soft gates are always open."""
        values = self.scorer.closed_gate_values(evaluated.prompts, self.stack)
        opened = torch.zeros(len(evaluated.prompts), len(self.stack.members), dtype=torch.bool)
        for index, member in enumerate(self.stack.members):
            columns = [place for place, (request_id, _layer) in enumerate(self.stack.columns) if request_id == member.request_id]
            if member.threshold is None or not columns:
                opened[:, index] = True
            else:
                opened[:, index] = (values[:, columns] >= member.threshold).any(-1)
        return opened

    def base(self, evaluated: EvalSet) -> tuple[RowScore, ...]:
        """The base's own rows of a set."""
        return tuple(self.base_rows[evaluated.name, prompt.record.digest, prompt.wording] for prompt in evaluated.prompts)

    def rows(self, evaluated: EvalSet, opened: Tensor) -> tuple[RowScore, ...]:
        """The stack's rows of a set; gate values are left out, as they would be one for each column of the stack.

        Args:
            opened: what :meth:`opened` said of the set.
        """
        rows = list(self.base(evaluated))
        touched = opened.any(-1).nonzero().flatten().tolist()
        prompts = [evaluated.prompts[index] for index in touched]
        scored = self.scorer.score_prompts(evaluated.name, prompts, adapter=self.stack) if prompts else ()
        for index, row in zip(touched, scored, strict=True):
            rows[index] = replace(row, gate_values=(), opened=None)
        return tuple(rows)
