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
from grun.evaluation.gate_values import read_gates
from grun.evaluation.membership import lowest_mean, zlib_bytes
from grun.evaluation.memorization import exact_memorization, extraction_strength
from grun.evaluation.rouge import rouge_1_recall, rouge_l_recall
from grun.evaluation.scores import RowScore
from grun.evaluation.sets import EvalPrompt, EvalSet
from grun.evaluation.token_scores import TokenScores, token_scores
from grun.interventions import Adapter, Edits
from grun.lm import Answers, CachedPass, FrozenLM, FullPass, IntervenedLM, Pass, PrefixCache

__all__ = ["AdapterScorer", "Rows", "Scorer"]

Rows = dict[str, tuple[RowScore, ...]]
"""Row scores by set name, in the order of the set's prompts."""

_ALL_CLOSED = 2.0
"""A gate threshold that no gate value reaches."""


@dataclass(frozen=True)
class _ScoredAnswer:
    """One answer under a model."""

    nll: float
    """Summed over its tokens, in nats."""
    tokens: TokenScores | None
    """Its tokens one by one, where the answer is the record's own."""


@dataclass(frozen=True)
class Scorer:
    """Runs a base over prompts, alone or with an adapter or a stack of them; thresholds as of :class:`IntervenedLM`."""

    lm: FrozenLM
    encoder: PromptEncoder
    batch_size: int
    max_new_tokens: int
    on_progress: Callable[[int], None] | None = None
    """Called with the number of rows just scored."""
    cache: PrefixCache | None = None
    """Holds every row that is scored with an adapter; the base alone is always run whole."""

    def base(self, adapter: Edits | None) -> Pass:
        """What runs the base under an adapter."""
        if self.cache is None or adapter is None:
            return FullPass(self.lm)
        return CachedPass(self.lm.above(adapter.layers[0]), self.cache)

    def score(self, sets: Sequence[EvalSet], *, adapter: Edits | None = None, threshold: float | None = None) -> Rows:
        """Score every prompt of every set."""
        return {s.name: self.score_prompts(s.name, s.prompts, adapter=adapter, threshold=threshold) for s in sets}

    @torch.no_grad()
    def score_prompts(
        self, set_name: str, prompts: Sequence[EvalPrompt], *, adapter: Edits | None = None, threshold: float | None = None
    ) -> tuple[RowScore, ...]:
        """Score prompts: the answer, its paraphrase, the wrong answers, and the greedy continuation."""
        model = IntervenedLM(self.lm, adapter, threshold=threshold)
        # (prompt, which answer) -> example; None is the record's own answer
        wanted = [(index, answer) for index, prompt in enumerate(prompts) for answer in prompt.answers]
        examples = [prompts[index].encode(self.encoder, answer=answer) for index, answer in wanted]
        answers = self._answers(examples, [answer is None for _index, answer in wanted], adapter, threshold)
        by_prompt: dict[int, list[tuple[_ScoredAnswer, Example]]] = {}
        for (index, _answer), scored, example in zip(wanted, answers, examples, strict=True):
            by_prompt.setdefault(index, []).append((scored, example))
        texts, gates = self._continuations(model, prompts)
        opened = None if adapter is None or gates is None else adapter.opened(torch.stack(gates), threshold)
        rows = []
        for index, prompt in enumerate(prompts):
            (own, example), *others = by_prompt[index]
            means = [scored.nll / other.num_answer_tokens for scored, other in others]
            has_paraphrase = isinstance(prompt.record, QARecord) and prompt.record.paraphrased_answer is not None
            values = tuple(gates[index].sigmoid().tolist()) if gates is not None else ()
            reference = self._reference(prompt)
            rows.append(
                RowScore(
                    digest=prompt.record.digest,
                    set_name=set_name,
                    prompt=prompt.wording,
                    num_answer_tokens=example.num_answer_tokens,
                    answer_nll_nats=own.nll,
                    paraphrased_answer_nll_mean=means[0] if has_paraphrase else None,
                    wrong_nll_means=tuple(means[1:] if has_paraphrase else means),
                    generated=texts[index],
                    rouge_l_recall=rouge_l_recall(reference, texts[index]),
                    gate_values=values,
                    opened=None if opened is None else bool(opened[index]),
                    rouge_1_recall=rouge_1_recall(reference, texts[index]),
                    zlib_bytes=zlib_bytes(self._answer_text(example)),
                    **_from_tokens(own.tokens),
                )
            )
        return tuple(rows)

    def _reference(self, prompt: EvalPrompt) -> str:
        """The gold continuation: the answer, or the rest of a plain text."""
        if isinstance(prompt.record, QARecord):
            return prompt.reference
        return self._answer_text(prompt.encode(self.encoder)).strip()

    def _answer_text(self, example: Example) -> str:
        """The answer's tokens as text, the end token left out."""
        [text] = self.lm.tokenizer.batch_decode([list(example.ids[example.num_prompt_tokens :])], skip_special_tokens=True)
        return text

    def _answers(
        self, examples: Sequence[Example], own: Sequence[bool], adapter: Edits | None, threshold: float | None
    ) -> list[_ScoredAnswer]:
        """Score answers, in order; batches hold sequences of similar length.

        Args:
            own: which of them are the records' own, whose tokens are kept one by one.
        """
        base = self.base(adapter)
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
        result: dict[int, _ScoredAnswer] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = [examples[index] for index in chosen]
            whose = torch.tensor([own[index] for index in chosen])
            answers = base.answers(batch, adapter, threshold=threshold, keep_logits=bool(whose.any()))
            sums = torch.zeros(len(chosen), device=answers.nll.device).index_add(0, answers.row, answers.nll)
            tokens = _tokens_of(answers, batch, whose)
            for position, (index, value) in enumerate(zip(chosen, sums.tolist(), strict=True)):
                result[index] = _ScoredAnswer(value, tokens.get(position))
        return [result[index] for index in range(len(examples))]

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
        return texts, gates if model.adapter is not None and model.adapter.gated_layers else None

    def closed_gate_values(self, prompts: Sequence[EvalPrompt], adapter: Edits) -> Tensor:
        """Gate values (rows, L) with every edit held back, which decide whether anything opens."""
        return self.gate_values(prompts, adapter, threshold=_ALL_CLOSED)

    def gate_values(self, prompts: Sequence[EvalPrompt], adapter: Edits, *, threshold: float | None) -> Tensor:
        """Gate values (rows, L) at the last prompt token, one forward pass and no generation."""
        rows = [prompt.encode(self.encoder).shortened() for prompt in prompts]
        return read_gates(self.base(adapter), rows, adapter, threshold=threshold, batch_size=self.batch_size)


def _tokens_of(answers: Answers, batch: Sequence[Example], whose: Tensor) -> dict[int, TokenScores]:
    """The tokens of some rows of a batch, by row; its logits are reduced here and held no longer."""
    if answers.logits is None:
        return {}
    kept = whose.to(answers.row.device)[answers.row].nonzero().flatten()
    targets = torch.tensor([token for example in batch for token in example.ids[example.num_prompt_tokens :]])
    scores = token_scores(answers.logits, targets.to(answers.row.device), kept)
    rows = answers.row[kept].cpu()
    return {
        row: TokenScores(scores.log_prob[rows == row], scores.right[rows == row], scores.standardised[rows == row])
        for row in whose.nonzero().flatten().tolist()
    }


def _from_tokens(tokens: TokenScores | None) -> dict[str, float | None]:
    """What a row keeps of the tokens of its own answer; the last one ends the text and does not count."""
    assert tokens is not None, "every prompt is scored with its record's own answer"
    right, log_probs, standardised = (values[:-1].tolist() for values in (tokens.right, tokens.log_prob, tokens.standardised))
    if not right:
        return {}
    return {
        "exact_memorization": exact_memorization(right),
        "extraction_strength": extraction_strength(right),
        "min_k_nats": -lowest_mean(log_probs),
        "min_k_plus_plus": -lowest_mean(standardised),
    }


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
        self.closed = {s.name: self._gate_values(s, _ALL_CLOSED) for s in sets}
        self.soft = {s.name: self._gate_values(s, None) for s in sets}
        self._soft_rows: dict[tuple[str, int], RowScore] = {}

    def _gate_values(self, evaluated: EvalSet, threshold: float | None) -> Tensor:
        if not self.adapter.gated_layers:
            return torch.empty(len(evaluated.prompts), 0)
        return self.scorer.gate_values(evaluated.prompts, self.adapter, threshold=threshold)

    def rows(self, threshold: float | None) -> Rows:
        """Return the scores at a gate threshold (None: soft gates); without gates there is nothing that it could close."""
        if not self.adapter.gated_layers:
            threshold = None
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
