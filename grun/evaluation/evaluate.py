"""Evaluate an adapter: score every prompt at any gate threshold, running the model as little as possible.

Two passes over the prompts decide what a threshold t does, exactly and for all thresholds at once:
- *closed* gate values, read with every edit held back: where all lie below t, nothing opens, and the row is the base's own;
- *soft* gate values, read with every edit applied: where all reach t, thresholding changes nothing, and the row is the
  soft adapter's.
Only rows in between (some layers open, some not) are run again for that very t. So the base is scored once for all
adapters, and a threshold costs next to nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord
from grun.evaluation.rouge import rouge_l_recall
from grun.evaluation.scores import RowScore
from grun.evaluation.sets import EvalPrompt, EvalSet
from grun.interventions import Adapter
from grun.lm import CachedPass, FrozenLM, FullPass, IntervenedLM, Pass, PrefixCache

__all__ = ["AdapterScorer", "Rows", "Scorer"]

Rows = dict[str, tuple[RowScore, ...]]
"""Row scores by set name, in the order of the set's prompts."""

_ALL_CLOSED = 2.0
"""A gate threshold that no gate value reaches."""


@dataclass(frozen=True)
class Scorer:
    """Runs a base, with or without an adapter, over prompts."""

    lm: FrozenLM
    encoder: PromptEncoder
    batch_size: int
    max_new_tokens: int
    on_progress: Callable[[int], None] | None = None
    """Called with the number of rows just scored."""
    cache: PrefixCache | None = None
    """Holds every row that is scored with an adapter; the base alone is always run whole."""

    def base(self, adapter: Adapter | None) -> Pass:
        """What runs the base under an adapter."""
        if self.cache is None or adapter is None:
            return FullPass(self.lm)
        return CachedPass(self.lm.above(adapter.layers[0]), self.cache)

    def score(self, sets: Sequence[EvalSet], *, adapter: Adapter | None = None, threshold: float | None = None) -> Rows:
        """Score every prompt of every set."""
        return {s.name: self.score_prompts(s.name, s.prompts, adapter=adapter, threshold=threshold) for s in sets}

    @torch.no_grad()
    def score_prompts(
        self, set_name: str, prompts: Sequence[EvalPrompt], *, adapter: Adapter | None = None, threshold: float | None = None
    ) -> tuple[RowScore, ...]:
        """Score prompts: the answer, its paraphrase, the wrong answers, and the greedy continuation."""
        model = IntervenedLM(self.lm, adapter, threshold=threshold)
        # (prompt, which answer) -> example; None is the record's own answer
        wanted = [(index, answer) for index, prompt in enumerate(prompts) for answer in prompt.answers]
        examples = [prompts[index].encode(self.encoder, answer=answer) for index, answer in wanted]
        nll = self._nll(examples, adapter, threshold)
        by_prompt: dict[int, list[tuple[float, int]]] = {}
        for (index, _answer), value in zip(wanted, nll, strict=True):
            by_prompt.setdefault(index, []).append(value)
        texts, gates = self._continuations(model, prompts)
        rows = []
        for index, prompt in enumerate(prompts):
            (own, count), *others = by_prompt[index]
            means = [total / tokens for total, tokens in others]
            has_paraphrase = isinstance(prompt.record, QARecord) and prompt.record.paraphrased_answer is not None
            values = tuple(gates[index].sigmoid().tolist()) if gates is not None else ()
            rows.append(
                RowScore(
                    digest=prompt.record.digest,
                    set_name=set_name,
                    prompt=prompt.wording,
                    num_answer_tokens=count,
                    answer_nll_nats=own,
                    paraphrased_answer_nll_mean=means[0] if has_paraphrase else None,
                    wrong_nll_means=tuple(means[1:] if has_paraphrase else means),
                    generated=texts[index],
                    rouge_l_recall=rouge_l_recall(self._reference(prompt), texts[index]),
                    gate_values=values,
                    opened=None if gates is None or threshold is None else bool((gates[index].sigmoid() >= threshold).any()),
                )
            )
        return tuple(rows)

    def _reference(self, prompt: EvalPrompt) -> str:
        """The gold continuation: the answer, or the rest of a plain text."""
        if isinstance(prompt.record, QARecord):
            return prompt.reference
        example = prompt.encode(self.encoder)
        [text] = self.lm.tokenizer.batch_decode([list(example.ids[example.num_prompt_tokens :])], skip_special_tokens=True)
        return text.strip()

    def _nll(self, examples: Sequence[Example], adapter: Adapter | None, threshold: float | None) -> list[tuple[float, int]]:
        """Summed answer NLL in nats and number of answer tokens, in order; batches hold sequences of similar length."""
        base = self.base(adapter)
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
        result: list[tuple[float, int]] = [(0.0, 1)] * len(examples)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            answers = base.answers([examples[index] for index in chosen], adapter, threshold=threshold)
            sums = torch.zeros(len(chosen), device=answers.nll.device).index_add(0, answers.row, answers.nll)
            for index, value in zip(chosen, sums.tolist(), strict=True):
                result[index] = (value, examples[index].num_answer_tokens)
        return result

    def _continuations(self, model: IntervenedLM, prompts: Sequence[EvalPrompt]) -> tuple[list[str], list[Tensor] | None]:
        ids = [prompt.encode(self.encoder).prompt_ids for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        texts, gates = [""] * len(ids), [torch.empty(0)] * len(ids)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            generated = model.generate([ids[index] for index in chosen], max_new_tokens=self.max_new_tokens)
            for offset, index in enumerate(chosen):
                texts[index] = generated.texts[offset]
                if generated.gate_logits is not None:
                    gates[index] = generated.gate_logits[offset].cpu()
            if self.on_progress is not None:
                self.on_progress(len(chosen))
        return texts, gates if model.adapter is not None else None

    def closed_gate_values(self, prompts: Sequence[EvalPrompt], adapter: Adapter) -> Tensor:
        """Gate values (rows, L) with every edit held back, which decide whether anything opens."""
        return self.gate_values(prompts, adapter, threshold=_ALL_CLOSED)

    @torch.no_grad()
    def gate_values(self, prompts: Sequence[EvalPrompt], adapter: Adapter, *, threshold: float | None) -> Tensor:
        """Gate values (rows, L) at the last prompt token, one forward pass and no generation."""
        base = self.base(adapter)
        examples = [prompt.encode(self.encoder) for prompt in prompts]
        # one answer token is what a batch needs at least; the gate reads the last prompt token alone
        short = [Example(e.digest, e.ids[: e.num_prompt_tokens + 1], e.num_prompt_tokens) for e in examples]
        order = sorted(range(len(short)), key=lambda index: len(short[index].ids))
        values = torch.empty(len(short), len(adapter.layers))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            logits = base.answers([short[index] for index in chosen], adapter, threshold=threshold).gate_logits
            assert logits is not None
            values[chosen] = logits.float().sigmoid().cpu()
        return values


class AdapterScorer:
    """Scores one adapter at any number of gate thresholds."""

    def __init__(self, scorer: Scorer, adapter: Adapter, sets: Sequence[EvalSet], base_rows: Rows) -> None:
        """Read the gates of every prompt.

        Args:
            base_rows: the base's own scores of the same sets.
        """
        self.scorer = scorer
        self.adapter = adapter
        self.sets = tuple(sets)
        self.base_rows = base_rows
        self.closed = {s.name: scorer.closed_gate_values(s.prompts, adapter) for s in sets}
        self.soft = {s.name: scorer.gate_values(s.prompts, adapter, threshold=None) for s in sets}
        self._soft_rows: dict[tuple[str, int], RowScore] = {}

    def rows(self, threshold: float | None) -> Rows:
        """Return the scores at a gate threshold (None: soft gates)."""
        return {s.name: self._set_rows(s, threshold) for s in self.sets}

    def _set_rows(self, evaluated: EvalSet, threshold: float | None) -> tuple[RowScore, ...]:
        closed, soft = self.closed[evaluated.name], self.soft[evaluated.name]
        stays_closed = (closed < threshold).all(-1) if threshold is not None else torch.zeros(len(closed), dtype=torch.bool)
        fully_open = (soft >= threshold).all(-1) if threshold is not None else torch.ones(len(soft), dtype=torch.bool)
        fully_open &= ~stays_closed
        rows: dict[int, RowScore] = {}
        for index in stays_closed.nonzero().flatten().tolist():
            values = tuple(closed[index].tolist())
            rows[index] = replace(self.base_rows[evaluated.name][index], gate_values=values, opened=False)
        open_rows = self._open_rows(evaluated, fully_open.nonzero().flatten().tolist())
        for index, row in open_rows.items():
            rows[index] = replace(row, opened=None if threshold is None else True)
        mixed = (~stays_closed & ~fully_open).nonzero().flatten().tolist()
        prompts = [evaluated.prompts[index] for index in mixed]
        if prompts:
            scored = self.scorer.score_prompts(evaluated.name, prompts, adapter=self.adapter, threshold=threshold)
            # a value of theirs reached the threshold, whatever rounding does to it in this batch
            rows.update((index, replace(row, opened=True)) for index, row in zip(mixed, scored, strict=True))
        return tuple(rows[index] for index in range(len(evaluated.prompts)))

    def _open_rows(self, evaluated: EvalSet, indices: Sequence[int]) -> dict[int, RowScore]:
        """Soft-gate scores of rows, each computed once."""
        missing = [index for index in indices if (evaluated.name, index) not in self._soft_rows]
        if missing:
            prompts = [evaluated.prompts[index] for index in missing]
            scored = self.scorer.score_prompts(evaluated.name, prompts, adapter=self.adapter, threshold=None)
            self._soft_rows.update({(evaluated.name, index): row for index, row in zip(missing, scored, strict=True)})
        return {index: self._soft_rows[evaluated.name, index] for index in indices}
