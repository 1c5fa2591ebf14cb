"""The probe: a quick look at the validation rows while training runs, for ASHA and for the curves.

    leaked = mean P(first answer token | forget prompt) / the base's        (prompts in words that training never saw)
    kept   = mean P(first answer token | ordinary prompt) / the base's      (prompts that training never saw)
    probe/score = kept - leaked

The edit acts where the first answer token is decided, and one forward pass over prompts costs no generation. Gates
are soft here; what the gate threshold does is judged after training.
"""

from collections.abc import Sequence

import torch

from grun.config import Recipe
from grun.data.prompts import Example, PromptEncoder
from grun.data.splits import Splits
from grun.evaluation.sets import EvalSet, evaluation_sets
from grun.interventions import Adapter
from grun.training import Engine, GateValues

__all__ = ["Probe"]


class Probe:
    """Scores an adapter on a fixed sample of validation rows, shared out over the workers."""

    def __init__(self, recipe: Recipe, splits: Splits, engine: Engine, encoder: PromptEncoder) -> None:
        sets = {s.role: s for s in evaluation_sets(splits, part="validation", max_rows=recipe.train.probe_rows)}
        self.engine = engine
        self.batch_size = recipe.evaluation.batch_size
        self.forget = self._first_tokens(encoder, sets["forget_unseen"])
        self.ordinary = self._first_tokens(encoder, sets["holdout"])
        self.num_forget, self.num_ordinary = (len(sets[role].prompts) for role in ("forget_unseen", "holdout"))
        self.forget_base = self._mean_probability(self.forget, None)
        self.ordinary_base = self._mean_probability(self.ordinary, None)

    def _first_tokens(self, encoder: PromptEncoder, rows: EvalSet) -> list[Example]:
        """Prompts with their first answer token, this worker's share; every worker gets as many, so that none waits."""
        examples = [prompt.encode(encoder) for prompt in rows.prompts]
        short = [example.shortened() for example in examples]
        per_worker = -(-len(short) // self.engine.world_size)
        padded = [short[index % len(short)] for index in range(per_worker * self.engine.world_size)]
        return padded[self.engine.rank :: self.engine.world_size]

    @torch.no_grad()
    def _mean_probability(self, examples: Sequence[Example], adapter: Adapter | None) -> float:
        sums = torch.zeros(2)
        for start in range(0, len(examples), self.batch_size):
            nll = self.engine.base.answers(examples[start : start + self.batch_size], adapter).nll
            sums += torch.tensor([float((-nll).exp().sum()), float(nll.numel())])
        self.engine.sum_(sums)
        return float(sums[0] / sums[1])

    @torch.no_grad()
    def gate_values(self, adapter: Adapter) -> GateValues:
        """The largest gate value of each prompt, on every worker."""
        if not adapter.gated_layers:
            return GateValues()
        return GateValues(
            self._largest(self.forget, self.num_forget, adapter), self._largest(self.ordinary, self.num_ordinary, adapter)
        )

    def _largest(self, examples: Sequence[Example], count: int, adapter: Adapter) -> tuple[float, ...]:
        mine: list[float] = []
        for start in range(0, len(examples), self.batch_size):
            logits = self.engine.base.answers(examples[start : start + self.batch_size], adapter).gate_logits
            assert logits is not None
            mine += logits.float().sigmoid().amax(-1).tolist()
        shares = self.engine.gather(mine)
        return tuple(values[index] for index in range(len(mine)) for values in shares)[:count]

    def __call__(self, adapter: Adapter) -> dict[str, float]:
        """Return `probe/forget_leaked`, `probe/ordinary_kept` and `probe/score`."""
        leaked = self._mean_probability(self.forget, adapter) / max(self.forget_base, 1e-9)
        kept = self._mean_probability(self.ordinary, adapter) / max(self.ordinary_base, 1e-9)
        return {"probe/forget_leaked": leaked, "probe/ordinary_kept": kept, "probe/score": min(kept, 1.0) - leaked}
