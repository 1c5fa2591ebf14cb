"""The scorer that skips work gives the rows of one that does all of it, at every gate threshold."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from grun.config import AdapterConfig, LinearGateConfig, NoGateConfig, PromptConfig
from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord, TextRecord
from grun.evaluation.calibration import OrdinaryGates
from grun.evaluation.evaluate import AdapterScorer, Rows, Scorer
from grun.evaluation.scores import RowScore
from grun.evaluation.sets import EvalPrompt, EvalSet
from grun.gates.linear import LinearGate
from grun.interventions import Adapter, build_adapter
from grun.lm import FrozenLM

NAMES = ("Ilva", "Bram", "Sefa", "Tomm", "Odile", "Wanja", "Kees", "Runa")
RECORDS = [
    QARecord(
        f"{verb} {name}{' by the old bridge' * (index % 3)}?",
        f"{name} does{' so' * (1 + index)}.",
        f"Tell me about {name}: {verb.lower()}?",
        f"So does {name}.",
        ("Nobody does.", f"{name} never did."),
    )
    for index, name in enumerate(NAMES)
    for verb in ("Who paints", "Where sleeps")
]
TEXT = TextRecord("Bridges in Harn open at noon, and close again when the last barge has passed the lock.")
BARE = QARecord("Who keeps the lock?", "The aunt of Bram.")
SETS = (
    EvalSet("forget", "forget", tuple(EvalPrompt(record, "question") for record in RECORDS)),
    EvalSet(
        "holdout",
        "holdout",
        (*(EvalPrompt(record, "paraphrase") for record in RECORDS), EvalPrompt(TEXT, "question"), EvalPrompt(BARE, "question")),
    ),
)
PROMPTS = [prompt for evaluated in SETS for prompt in evaluated.prompts]


def make_scorer(lm: FrozenLM, batch_size: int = 5) -> Scorer:
    return Scorer(lm, PromptEncoder(lm.tokenizer, PromptConfig(), context=lm.context), batch_size, max_new_tokens=4)


@pytest.fixture(scope="module")
def scorer(tiny_lm: FrozenLM) -> Scorer:
    return make_scorer(tiny_lm)


@pytest.fixture(scope="module")
def adapter(scorer: Scorer) -> Adapter:
    """Three layers whose gates are open for some prompts and closed for others, each gate for other ones."""
    built = build_adapter(
        AdapterConfig(layers=(0, 1, 3), rank=4, gate=LinearGateConfig()), hidden_size=32, num_layers=4, seed=0
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for index, (_layer, gated) in enumerate(built):
            gate = gated.gate
            assert isinstance(gate, LinearGate)
            gated.intervention.learned_source.weight.mul_(8)  # edits that later gates and the logits notice
            gate.linear.weight.copy_(0.01 * torch.randn(1, 32, generator=generator))
            logits = scorer.gate_values(PROMPTS, built, threshold=None)[:, index].logit()
            gate.linear.weight.div_(logits.std())
            gate.linear.bias.sub_(logits.mean()).div_(logits.std())
    return built


@pytest.fixture(scope="module")
def base_rows(scorer: Scorer) -> Rows:
    return scorer.score(SETS)


@pytest.fixture(scope="module")
def fast(scorer: Scorer, adapter: Adapter, base_rows: Rows) -> AdapterScorer:
    return AdapterScorer(scorer, adapter, SETS, base_rows)


def between(values: torch.Tensor, share: float) -> float:
    """A threshold in the gap between two gate values, so that rounding decides nothing."""
    ordered = values.flatten().unique()
    index = int(share * (len(ordered) - 2))
    return float(ordered[index : index + 2].mean())


def numbers(row: RowScore) -> list[float]:
    parts = (
        row.paraphrased_answer_nll_mean,
        row.rouge_l_recall,
        row.rouge_1_recall,
        row.exact_memorization,
        row.extraction_strength,
        row.zlib_bytes,
    )
    return [row.answer_nll_nats, *row.wrong_nll_means, *row.gate_values, *(math.nan if p is None else p for p in parts)]


def assert_same(rows: Sequence[RowScore], expected: Sequence[RowScore]) -> None:
    def words(row: RowScore) -> tuple[object, ...]:
        return (row.digest, row.set_name, row.prompt, row.num_answer_tokens, row.generated, row.opened, len(numbers(row)))

    assert [words(row) for row in rows] == [words(row) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert numbers(row) == pytest.approx(numbers(other), abs=2e-5, nan_ok=True)
        assert row.min_k_nats == pytest.approx(other.min_k_nats, abs=1e-4)
        assert row.min_k_plus_plus == pytest.approx(other.min_k_plus_plus, abs=1e-4)


@pytest.mark.parametrize("share", [None, 0.02, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98])
def test_rows_at_a_threshold_equal_those_of_a_full_run(
    fast: AdapterScorer, scorer: Scorer, adapter: Adapter, share: float | None
) -> None:
    both = [values for gates in (fast.closed, fast.soft) for values in gates.values()]
    threshold = None if share is None else between(torch.cat(both), share)
    rows, expected = fast.rows(threshold), scorer.score(SETS, adapter=adapter, threshold=threshold)
    assert list(rows) == ["forget", "holdout"]
    for name in rows:
        assert_same(rows[name], expected[name])


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_ends_of_the_scale(fast: AdapterScorer, scorer: Scorer, adapter: Adapter, base_rows: Rows, threshold: float) -> None:
    rows = fast.rows(threshold)
    for name in rows:
        assert_same(rows[name], scorer.score(SETS, adapter=adapter, threshold=threshold)[name])
        assert {row.opened for row in rows[name]} == {threshold == 0.0}
        if threshold == 1.0:
            assert [replace(row, gate_values=(), opened=None) for row in rows[name]] == list(base_rows[name])


def test_the_thresholds_above_meet_closed_open_and_mixed_rows(fast: AdapterScorer) -> None:
    threshold = between(fast.soft["forget"], 0.5)
    closed = (fast.closed["forget"] < threshold).all(-1)
    opened = (fast.soft["forget"] >= threshold).all(-1)
    assert closed.any()
    assert opened.any()
    assert (~closed & ~opened).any()
    assert (fast.closed["forget"][:, 1:] - fast.soft["forget"][:, 1:]).abs().max() > 0.05


def test_rows_whose_gates_stay_closed_are_the_bases_own(fast: AdapterScorer, base_rows: Rows) -> None:
    rows = fast.rows(between(fast.closed["forget"], 0.8))["forget"]
    closed = [index for index, row in enumerate(rows) if not row.opened]
    assert closed
    for index in closed:
        assert replace(rows[index], gate_values=(), opened=None) == base_rows["forget"][index]
        assert rows[index].gate_values == pytest.approx(fast.closed["forget"][index].tolist())


def test_records_counted_as_open_are_those_whose_rows_open(fast: AdapterScorer) -> None:
    holdout = SETS[1]
    gates = OrdinaryGates.of(holdout, fast.closed["holdout"])
    values = gates.largest[[0, len(gates.largest) // 2, -1]]
    # at a value it opens, at the next float it does not
    for threshold in (0.0, *values.tolist(), *np.nextafter(values, np.float32(1)).tolist(), 1.0):
        opened = {row.digest for row in fast.rows(threshold)["holdout"] if row.opened}
        assert gates.count(threshold, delta=0.05).num_open == len(opened)
    below, above = (gates.count(float(t), delta=0.05).num_open for t in (values[1], np.nextafter(values[1], np.float32(1))))
    assert below == above + 1


def test_only_rows_in_between_are_run_again(fast: AdapterScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    threshold = between(fast.soft["forget"], 0.5)
    fast.rows(None)  # the soft rows are known from here on
    ran: list[EvalPrompt] = []
    run = Scorer.score_prompts

    def counted(self: Scorer, name: str, prompts: Sequence[EvalPrompt], **options: object) -> tuple[RowScore, ...]:
        ran.extend(prompts)
        return run(self, name, prompts, **options)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(Scorer, "score_prompts", counted)
    fast.rows(threshold)
    mixed = [
        prompt
        for s in SETS
        for prompt, closed, soft in zip(s.prompts, fast.closed[s.name], fast.soft[s.name], strict=True)
        if not (closed < threshold).all() and not (soft >= threshold).all()
    ]
    assert ran == mixed
    assert len(mixed) < len(PROMPTS)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_rows_do_not_depend_on_the_batch_size(
    tiny_lm: FrozenLM, scorer: Scorer, adapter: Adapter, fast: AdapterScorer, batch_size: int
) -> None:
    other = make_scorer(tiny_lm, batch_size)
    threshold = between(fast.soft["forget"], 0.5)
    for chosen in (None, adapter):
        expected = scorer.score(SETS, adapter=chosen, threshold=threshold)
        for name, rows in other.score(SETS, adapter=chosen, threshold=threshold).items():
            assert_same(rows, expected[name])


def test_rows_come_in_the_order_of_the_prompts(scorer: Scorer, base_rows: Rows) -> None:
    for evaluated in SETS:
        assert [(row.digest, row.prompt) for row in base_rows[evaluated.name]] == [
            (prompt.record.digest, prompt.wording) for prompt in evaluated.prompts
        ]
    backwards = scorer.score_prompts("forget", SETS[0].prompts[::-1])
    assert_same(backwards, base_rows["forget"][::-1])


def test_each_answer_is_scored_as_if_it_were_the_records_own(scorer: Scorer, base_rows: Rows) -> None:
    record = RECORDS[5]
    row = base_rows["forget"][5]

    def alone(answer: str) -> RowScore:
        [scored] = scorer.score_prompts("forget", [EvalPrompt(QARecord(record.question, answer), "question")])
        return scored

    assert record.paraphrased_answer is not None
    assert row.paraphrased_answer_nll_mean == pytest.approx(alone(record.paraphrased_answer).answer_nll_mean, abs=1e-5)
    assert row.wrong_nll_means == pytest.approx([alone(wrong).answer_nll_mean for wrong in record.wrong_answers], abs=1e-5)
    assert len({round(value, 3) for value in (row.answer_nll_mean, row.base_nll_mean, *row.wrong_nll_means)}) == 4


def test_records_without_other_answers_and_plain_texts(scorer: Scorer, base_rows: Rows) -> None:
    text, bare = base_rows["holdout"][-2:]
    for row in (text, bare):
        assert (row.paraphrased_answer_nll_mean, row.wrong_nll_means, row.gate_values, row.opened) == (None, (), (), None)
    assert text.num_answer_tokens == EvalPrompt(TEXT, "question").encode(scorer.encoder).num_answer_tokens


def test_a_texts_continuation_is_compared_with_the_rest_of_the_text(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def recall(reference: str, _said: str) -> float:
        seen.append(reference)
        return 0.5

    monkeypatch.setattr("grun.evaluation.evaluate.rouge_l_recall", recall)
    scorer.score_prompts("holdout", [EvalPrompt(TEXT, "question"), EvalPrompt(BARE, "question")])
    assert TEXT.text.endswith(seen[0])
    assert 0 < len(seen[0]) < len(TEXT.text) / 2
    assert seen[1] == BARE.answer


def test_progress_counts_every_row_once(tiny_lm: FrozenLM) -> None:
    counts: list[int] = []
    replace(make_scorer(tiny_lm), on_progress=counts.append).score(SETS[:1])
    assert sum(counts) == len(SETS[0].prompts)
    assert max(counts) == 5


def by_definition(lm: FrozenLM, example: Example) -> tuple[list[bool], list[float], list[float]]:
    """First choices, log-probabilities and standardised ones of the answer, the end left out: one row, no padding, float64."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([example.ids])).logits[0].double()
    logs = logits.log_softmax(-1)[example.num_prompt_tokens - 1 : -2]
    targets = torch.tensor(example.ids[example.num_prompt_tokens : -1])
    of_token = logs[torch.arange(len(targets)), targets]
    mean = (logs.exp() * logs).sum(-1)
    variance = (logs.exp() * logs.square()).sum(-1) - mean.square()
    return (logs.argmax(-1) == targets).tolist(), of_token.tolist(), ((of_token - mean) / variance.sqrt()).tolist()


def test_what_a_row_keeps_of_its_tokens(scorer: Scorer, base_rows: Rows) -> None:
    rows = [row for evaluated in SETS for row in base_rows[evaluated.name]]
    for prompt, row in zip(PROMPTS, rows, strict=True):
        example = prompt.encode(scorer.encoder)
        right, logs, standardised = by_definition(scorer.lm, example)
        lowest = max(1, int(0.4 * len(logs)))
        assert row.exact_memorization == pytest.approx(sum(right) / len(right))
        first = next((k for k in range(len(right)) if all(right[k:])), len(right) - 1)
        assert row.extraction_strength == pytest.approx(1 - first / len(right))
        assert row.min_k_nats == pytest.approx(-sum(sorted(logs)[:lowest]) / lowest, abs=1e-4)
        assert row.min_k_plus_plus == pytest.approx(-sum(sorted(standardised)[:lowest]) / lowest, abs=1e-3)
        [answer] = scorer.lm.tokenizer.batch_decode([list(example.ids[example.num_prompt_tokens : -1])])
        assert row.zlib_bytes == len(zlib.compress(answer.encode()))
        assert row.rouge_1_recall is not None
        assert row.rouge_l_recall is not None
        assert row.rouge_1_recall >= row.rouge_l_recall


def greedy(lm: FrozenLM, prompt: tuple[int, ...], wrong: Sequence[int], length: int) -> tuple[int, ...]:
    """The model's own first choices one after another, but at some positions its last choice."""
    ids = list(prompt)
    for index in range(length):
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmin() if index in wrong else logits.argmax()))
    return tuple(ids)


def test_memorization_of_answers_that_the_model_gives_by_itself(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    # wrong tokens, exact memorization, extraction strength of six tokens
    cases = [((), 6 / 6, 6 / 6), ((0,), 5 / 6, 5 / 6), ((1, 3), 4 / 6, 2 / 6), ((5,), 5 / 6, 1 / 6)]
    prompts = [EvalPrompt(RECORDS[index], "question") for index in range(len(cases))]
    written = {}
    for prompt, (wrong, _memorized, _strength) in zip(prompts, cases, strict=True):
        plain = prompt.encode(scorer.encoder)
        ids = (*greedy(scorer.lm, plain.prompt_ids, wrong, 6), plain.ids[-1])
        written[plain.digest] = Example(plain.digest, ids, plain.num_prompt_tokens)
    encode = EvalPrompt.encode

    def own(self: EvalPrompt, encoder: PromptEncoder, *, answer: str | None = None) -> Example:
        return written[self.record.digest] if answer is None else encode(self, encoder, answer=answer)

    monkeypatch.setattr(EvalPrompt, "encode", own)
    for row, (_wrong, memorized, strength) in zip(scorer.score_prompts("forget", prompts), cases, strict=True):
        assert row.exact_memorization == pytest.approx(memorized)
        assert row.extraction_strength == pytest.approx(strength)


def test_an_answer_of_the_end_alone_has_nothing_to_memorize(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = EvalPrompt.encode

    def cut(self: EvalPrompt, encoder: PromptEncoder, *, answer: str | None = None) -> Example:
        example = encode(self, encoder, answer=answer)
        return Example(example.digest, (*example.prompt_ids, example.ids[-1]), example.num_prompt_tokens)

    monkeypatch.setattr(EvalPrompt, "encode", cut)
    [row] = scorer.score_prompts("holdout", [EvalPrompt(BARE, "question")])
    assert (row.num_answer_tokens, row.exact_memorization, row.extraction_strength) == (1, None, None)
    assert (row.min_k_nats, row.min_k_plus_plus, row.zlib_bytes) == (None, None, 8)


@pytest.mark.parametrize("threshold", [None, 0.5, 1.0])
def test_without_gates_a_threshold_does_nothing(scorer: Scorer, base_rows: Rows, threshold: float | None) -> None:
    config = AdapterConfig(layers=(0, 3), rank=4, gate=NoGateConfig())
    ungated = build_adapter(config, hidden_size=32, num_layers=4, seed=0).eval()
    with torch.no_grad():
        for _layer, gated in ungated:
            gated.intervention.learned_source.weight.mul_(8)
    rows = AdapterScorer(scorer, ungated, SETS, base_rows).rows(threshold)
    for name in rows:
        assert_same(rows[name], scorer.score(SETS, adapter=ungated)[name])
        assert {(row.gate_values, row.opened) for row in rows[name]} == {((), None)}
        assert all(row.answer_nll_nats != base.answer_nll_nats for row, base in zip(rows[name], base_rows[name], strict=True))
